"""What a student is trained on: weights of losses, pairs of layers, labels or none, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepress.compress.distill import CachedTeacher, DistillObjective, DistillSettings, ModuleTeacher, cache_outputs, losses, parse_loss
from edgepress.targets.errors import TrainingError
from tests.compress.distill.nets import Skips, conv, exported, images, transformer
from tests.compress.distill.test_teacher import Data

ROWS, LABELS = torch.arange(6), torch.arange(6) % 5


def task(outputs: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs if isinstance(outputs, Tensor) else outputs[0], labels)


def student_of(width: int, kind: str) -> nn.Module:
    module = conv(width, seed=3)
    return module if kind == "module" else exported(module, images()).module(check_guards=False).requires_grad_(True)


def test_the_loss_is_the_weighted_sum_of_task_and_teacher() -> None:
    student, teacher, x = conv(4), conv(8, seed=1), images()
    settings = DistillSettings({"kd": 0.5, "dkd": 0.25, "mse": 2.0, "rkd": 1.0}, task_weight=0.3, temperature=2.0)
    loss = DistillObjective(student, ModuleTeacher(teacher), [x], settings, task)(student, (x,), LABELS, ROWS)
    got, wanted = student(x), teacher(x).detach()
    expected = 0.3 * F.cross_entropy(got, LABELS) + 0.5 * losses.kd(got, wanted, 2.0) + 0.25 * losses.dkd(got, wanted, LABELS, 2.0)
    expected = expected + 2 * losses.mse(got, wanted) + losses.rkd(got, wanted)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["module", "program"])
def test_a_student_learns_from_a_teacher_without_labels(kind: str) -> None:
    student, x = student_of(4, kind), images(32)
    objective = DistillObjective(student, ModuleTeacher(conv(8, seed=1)), [x], DistillSettings({"kd": 1, "hint": 1}, task_weight=0))
    parameters = [*student.parameters(), *(p for module in objective.modules() for p in module.parameters())]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    seen = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(student, (x,), None, torch.arange(32))
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.4 * seen[0]
    assert all(p.grad is not None for p in parameters)


def test_features_of_an_exported_student_are_those_of_its_module() -> None:
    x, teacher = images(), conv(8, seed=1)
    found = []
    for kind in ("module", "program"):
        student = student_of(4, kind)
        objective = DistillObjective(student, ModuleTeacher(teacher), [x], DistillSettings({"hint": 1, "attention": 3}, task_weight=0))
        assert [pair.student.name for pair in objective.pairs] == ["layer1", "layer2", "layer3"]
        found.append(objective(student, (x,), None, ROWS))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("kind", ["module", "program"])
def test_closing_leaves_the_student_as_it_was(kind: str) -> None:
    student, x = student_of(4, kind), images()
    before, names = student(x), [(name, len(module._forward_hooks)) for name, module in student.named_modules()]
    objective = DistillObjective(student, ModuleTeacher(conv(8)), [x], DistillSettings({"hint": 1}, task_weight=0))
    torch.testing.assert_close(student(x), before)
    objective.close()
    assert [(name, len(module._forward_hooks)) for name, module in student.named_modules()] == names
    torch.testing.assert_close(student(x), before)


@pytest.mark.parametrize("kind", ["module", "program"])
def test_a_copy_of_the_student_does_not_answer_for_it(kind: str) -> None:
    student, x = student_of(4, kind), images()
    objective = DistillObjective(student, ModuleTeacher(conv(8)), [x], DistillSettings({"hint": 1}, task_weight=0))
    expected = objective(student, (x,), None, ROWS)

    class WithCopy(nn.Module):
        def forward(self, inputs: Tensor) -> Any:
            output = student(inputs)
            averaged(inputs * 3)
            return output

    averaged = copy.deepcopy(student)
    torch.testing.assert_close(objective(WithCopy(), (x,), None, ROWS), expected)


def test_equal_widths_need_no_projector_and_others_get_one() -> None:
    x, settings = images(), DistillSettings({"hint": 1}, task_weight=0)
    assert DistillObjective(conv(8), ModuleTeacher(conv(8)), [x], settings).modules() == []
    narrow = DistillObjective(conv(4), ModuleTeacher(conv(8)), [x], settings)
    assert [tuple(p.shape) for p in narrow.projectors.parameters()][::2] == [(8, 4), (16, 8), (32, 16)]
    again = DistillObjective(conv(4), ModuleTeacher(conv(8)), [x], settings)
    for a, b in zip(narrow.projectors.parameters(), again.projectors.parameters(), strict=True):
        assert torch.equal(a, b)


def test_blocks_of_a_transformer_are_paired_by_depth() -> None:
    x = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    student, teacher = transformer(3, 8), ModuleTeacher(exported(transformer(6, 16), x))
    objective = DistillObjective(student, teacher, [x], DistillSettings({"hint": 1}, task_weight=0))
    names = [(pair.student.name, pair.teacher.name, pair.dim) for pair in objective.pairs]
    assert names == [("blocks.0", "blocks.1", 2), ("blocks.1", "blocks.3", 2), ("blocks.2", "blocks.5", 2)]
    assert objective(student, (x,), None, ROWS[:2]) > 0


def test_named_pairs_take_wildcards_and_nodes() -> None:
    x = images()
    settings = DistillSettings({"attention": 1}, task_weight=0, pairs=(("layer?.1", "layer?.1"), ("layer3", "relu_2")))
    objective = DistillObjective(conv(4), ModuleTeacher(exported(conv(8), x)), [x], settings)
    assert [(pair.student.name, pair.teacher.name) for pair in objective.pairs] == [
        ("layer1.1", "layer1.1"),
        ("layer2.1", "layer2.1"),
        ("layer3.1", "layer3.1"),
        ("layer3", "relu_2"),
    ]


def test_outputs_kept_on_disk_teach_the_same(tmp_path: Any) -> None:
    data, teacher, student = Data(6), ModuleTeacher(conv(8, seed=1)), conv(4)
    x = torch.stack([data[i][0] for i in range(6)])
    cached = cache_outputs(teacher, data, tmp_path, dtype="float32")
    assert isinstance(cached, CachedTeacher)
    found = [DistillObjective(student, t, [x], DistillSettings(task_weight=0))(student, (x,), None, ROWS) for t in (teacher, cached)]
    torch.testing.assert_close(found[0], found[1])
    with pytest.raises(TrainingError, match="hint copies layers: CachedTeacher gives outputs alone"):
        DistillObjective(student, cached, [x], DistillSettings({"hint": 1}, task_weight=0))


def test_dkd_of_blended_labels_takes_the_likeliest_class() -> None:
    student, x = conv(4), images()
    objective = DistillObjective(student, ModuleTeacher(conv(8)), [x], DistillSettings({"dkd": 1}, task_weight=0))
    blended = 0.8 * F.one_hot(LABELS, 5).float() + 0.2 * F.one_hot(LABELS.flip(0), 5).float()
    torch.testing.assert_close(objective(student, (x,), blended, ROWS), objective(student, (x,), LABELS, ROWS))


def test_losses_stay_in_float32_where_the_models_run_in_half_precision() -> None:
    """Same outputs, with and without autocast: rkd and the projectors multiply matrices, which autocast would round."""

    class Fixed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer, self.value = nn.Identity(), torch.randn(6, width, generator=torch.Generator().manual_seed(width))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.value)[:, :4] + 0 * x.sum()

    x, student = images(), Fixed(8)
    settings = DistillSettings({"rkd": 1, "hint": 1}, task_weight=0, pairs=(("layer", "layer"),))
    objective = DistillObjective(student, ModuleTeacher(Fixed(16)), [x], settings)
    expected = objective(student, (x,), None, ROWS)
    with torch.autocast("cpu", torch.bfloat16):
        got = objective(student, (x,), None, ROWS)
    assert torch.equal(got, expected)


def test_a_teacher_with_other_outputs_is_refused_with_both_shapes() -> None:
    with pytest.raises(TrainingError, match=r"student gives \(5,\) per sample, the teacher \(7,\)"):
        DistillObjective(conv(4), ModuleTeacher(conv(8, classes=7)), [images()], DistillSettings(task_weight=0))


def test_class_losses_refuse_a_single_output_value() -> None:
    with pytest.raises(TrainingError, match=r"kd needs two or more classes.*output 0 has \(1,\).*mse"):
        DistillObjective(conv(4, 1), ModuleTeacher(conv(8, 1)), [images()], DistillSettings(task_weight=0))
    objective = DistillObjective(conv(4, 1), ModuleTeacher(conv(8, 1)), [images()], DistillSettings({"mse": 1}, task_weight=0))
    assert objective(conv(4, 1), (images(),), None, ROWS) > 0


def test_patterns_that_match_nothing_name_the_nearest_layers() -> None:
    for pairs, whose in (((("layr1", "layer1"),), "student"), ((("layer1", "layr1"),), "teacher")):
        with pytest.raises(TrainingError, match=rf"no layer of the {whose} matches 'layr1'.*layer1"):
            DistillObjective(conv(4), ModuleTeacher(conv(8)), [images()], DistillSettings({"hint": 1}, task_weight=0, pairs=pairs))


def test_pairs_that_do_not_go_together_are_refused() -> None:
    settings = DistillSettings({"hint": 1}, task_weight=0, pairs=(("layer?", "layer1"),))
    with pytest.raises(TrainingError, match=r"'layer\?' matches 3 layers of the student and 'layer1' 1"):
        DistillObjective(conv(4), ModuleTeacher(conv(8)), [images()], settings)
    settings = DistillSettings({"hint": 1}, task_weight=0, pairs=(("head", "layer1"),))
    with pytest.raises(TrainingError, match=r"'head' of the student has shape \(6, 5\), 'layer1' of the teacher \(6, 8, 8, 8\)"):
        DistillObjective(conv(4), ModuleTeacher(conv(8)), [images()], settings)


def test_a_layer_that_does_not_run_is_named() -> None:
    torch.manual_seed(0)
    student, x = Skips().eval(), torch.randn(3, 4)
    settings = DistillSettings({"hint": 1}, task_weight=0, pairs=(("a", "a"),))
    objective = DistillObjective(student, ModuleTeacher(Skips().eval()), [x], settings)
    student.train()
    with pytest.raises(TrainingError, match="'a' gave no output"):
        objective(student, (x,), None, ROWS[:3])


def test_missing_labels_are_named() -> None:
    student, x = conv(4), images()
    with pytest.raises(TrainingError, match="task's loss needs labels"):
        DistillObjective(student, ModuleTeacher(conv(8)), [x], DistillSettings(), task)(student, (x,), None, ROWS)
    with pytest.raises(TrainingError, match="no task loss"):
        DistillObjective(student, ModuleTeacher(conv(8)), [x], DistillSettings())


@pytest.mark.parametrize(
    ("spec", "message"),
    [("kdd", "'kdd'.*'kd'"), ({"Hint": 1}, "'hint'"), ({"kd": 0}, "weight 0"), ({"kd": True}, "weight True"), ({}, "no loss")],
)
def test_wrong_losses_say_what_is_right(spec: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        parse_loss(spec)


def test_losses_are_given_by_name_or_with_weights() -> None:
    assert parse_loss("kd") == {"kd": 1.0}
    assert parse_loss({"kd": 1, "hint": 0.5}) == {"kd": 1.0, "hint": 0.5}
    with pytest.raises(TrainingError, match="temperature 0"):
        DistillSettings(temperature=0)
