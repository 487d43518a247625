"""How well the token-type head tells where regions end, on the histories of held-out tasks.

    python results/ends.py --ckpt CKPT --out results/scores/NAME    # a model whose regions differ in length

Position tells nothing there: a region ends with the first step that shows news, or when it is full. Ends of both
kinds are counted apart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from checkpoints import load_checkpoint
from config.loading import complete_config
from dataset import ADDataset
from files import InputError, make_folder
from model import load_model
from model.tokens import IGNORE, TokenType
from scripts import positive, result_name, run_script


@torch.no_grad()
def count_ends(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, int]:
    """Numbers of true ends, of all and of those before a region was full, and how many of each were predicted."""
    x, layout = model.embed_window(batch)
    features = model.context.read(model.transformer, x, layout)
    known = layout.next_types != IGNORE
    true = layout.next_types[known] == TokenType.COMPRESS_END
    predicted = model.pred_token_type(features[known]).argmax(-1) == TokenType.COMPRESS_END
    early = true & (layout.positions[known] < model.context.region_capacity)
    counted = {"ends": true, "early": early, "predicted": predicted, "found": true & predicted}
    return {name: int(which.sum()) for name, which in (counted | {"found_early": early & predicted}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a model with memory")
    parser.add_argument("--traj-dir", type=Path, default=ROOT / "datasets", help="folder of its history file")
    parser.add_argument("--out", type=result_name, required=True, help="where the counts go, without .npz")
    parser.add_argument("--histories", type=positive, default=320, help="how many (default: %(default)s)")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.ckpt)
    config = complete_config(checkpoint["config"], args.ckpt)
    if config["context"] != "memory":
        raise InputError(f"{args.ckpt}: its context is {config['context']}, expected memory")
    make_folder(args.out.parent)
    model = load_model(checkpoint, config, args.ckpt)
    dataset, rng = ADDataset(config, args.traj_dir, "test"), np.random.default_rng(0)
    sizes = [min(32, args.histories - done) for done in range(0, args.histories, 32)]
    counts = [count_ends(model.eval(), dataset.sample_batch(size, rng)) for size in sizes]
    total = {name: sum(of_batch[name] for of_batch in counts) for name in counts[0]}
    np.savez(f"{args.out}.npz", **total)
    print(f"{total['ends']} ends, {total['early']} of them early; {total['predicted']} predicted")
    print(
        f"precision {total['found'] / max(1, total['predicted']):.3f}, recall {total['found'] / total['ends']:.3f}, ",
        end="",
    )
    print(f"of early ones {total['found_early'] / max(1, total['early']):.3f}")


if __name__ == "__main__":
    run_script(main)
