"""The loss that asks summaries what their regions showed: right answers, nothing drawn in tests, learned, shared by ranks."""

import numpy as np
import pytest
import torch
from conftest import write_file
from test_context import random_model
from test_memory import MEMORY

from dataset import ADDataset
from files import InputError
from history.format import history_path
from model.context.memory import make_plan
from model.context.recall import N_QUESTIONS, answers, ask

RECALL = [
    *MEMORY,
    "memory_regions=2",
    "histories=whole",
    "mix_streams=false",
    "region_stride=1",
    "recall_loss_weight=1.0",
]


def random_batch(model, folder, n=4) -> dict:
    write_file(history_path(model.config, folder), model.config, 36, 6)
    return ADDataset(model.config, folder, "train").sample_batch(n, np.random.default_rng(0))


def test_answers_are_those_of_the_regions_that_a_node_stands_for():
    rng, lengths = np.random.default_rng(0), torch.tensor([[3, 4, 2, 4], [4, 1, 0, 0]])
    observations = torch.from_numpy(rng.integers(3, size=(2, 13, 2)))
    batch, plan = {"observations": observations, "region_lengths": lengths}, make_plan(4, 1)
    asked = ask(batch, is_training=True)
    occurs, exists = answers(batch, asked, plan.regions())
    assert plan.regions()[4:] == [(0, 1)] and exists.tolist() == [[True] * 5, [True, True, False, False, True]]
    for b in range(2):
        held = observations[b].split([*lengths[b].tolist(), int(13 - lengths[b].sum())])
        for node, regions in enumerate(plan.regions()):
            shown = {tuple(step.tolist()) for region in regions for step in held[region]}
            assert occurs[b, node].tolist() == [tuple(question.tolist()) in shown for question in asked[b]]
    assert {tuple(o.tolist()) for o in asked[1]} <= {tuple(o.tolist()) for o in observations[1, :5]}  # no padding
    assert 0.1 < occurs.float().mean() < 0.9 and asked.shape == (2, N_QUESTIONS, 2)


def test_held_out_losses_draw_nothing_and_repeat(tmp_path):
    model = random_model(*RECALL)
    batch, state = random_batch(model, tmp_path), torch.get_rng_state()
    losses = [model(batch)["loss_recall"].item() for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state) and losses[0] == losses[1]
    model.train()
    assert len({model(batch)["loss_recall"].item() for _ in range(3)}) == 3


def test_the_mean_over_parts_of_a_batch_is_the_whole_batches_loss(tmp_path):
    model = random_model(*RECALL)
    batch = random_batch(model, tmp_path)
    parts = [model({name: values[i::2] for name, values in batch.items()})["loss_recall"].item() for i in range(2)]
    assert np.mean(parts) == pytest.approx(model(batch)["loss_recall"].item(), rel=1e-5)


def test_what_regions_showed_is_learned_and_counts_in_the_total(tmp_path):
    model = random_model(*RECALL)
    batch, optimizer = random_batch(model, tmp_path), torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    first = model(batch)
    expected = first["loss_action"] + 0.1 * first["loss_token_type"] + first["loss_recall"]
    torch.testing.assert_close(first["loss_total"], expected)
    for _ in range(150):
        optimizer.zero_grad()
        losses = model(batch)
        losses["loss_recall"].backward()
        optimizer.step()
    assert losses["loss_recall"] < 0.45  # knowing only how often things occur gives 0.6


def test_it_is_memorys_alone():
    has_weights = {
        weight: any("recall" in name for name in random_model(*RECALL, f"recall_loss_weight={weight}").state_dict())
        for weight in (0.0, 1.0)
    }
    assert has_weights == {0.0: False, 1.0: True}  # old checkpoints have none
    with pytest.raises(InputError, match="recall_loss_weight"):
        random_model("use_compressed_context=true", "recall_loss_weight=0.1")
