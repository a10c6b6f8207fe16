from __future__ import annotations

import io

import pytest
from rich.console import Console
from sample_report import int8_facts, report, result, time_budget

from edgevit.report import phrases
from edgevit.report.blocks import breaking
from edgevit.report.model import NotBuilt, PreflightFacts, ReductionFacts, Report, Speedup, TuneFacts
from edgevit.report.terminal import render, render_comparison, render_int8

NARROW = """\
deit-tiny-orin  deit_tiny_patch16_224, weights: deit_tiny.safetensors
Warning: 2 of 650 evaluation images were corrupt and skipped
candidate          model     MACs   params     file  top-1  agree
─────────────────────────────────────────────────────────────────
openvino-cpu fp32  dense  1.254 G  5.717 M  23.0 MB  79.2%      -
chosen             slim   0.780 G  3.902 M  15.8 MB  78.6%  94.3%

openvino-cpu bf16  dense  1.254 G  5.717 M  11.6 MB  79.0%      -
                   slim   0.780 G  3.902 M   8.0 MB  78.4%  94.3%

openvino-cpu int8  dense  1.254 G  5.717 M   5.9 MB  77.7%      -
refused            slim   0.780 G  3.902 M   4.1 MB  77.1%  94.3%

candidate     verdict     dense ms    slim ms   speed-up  promised  kept
────────────────────────────────────────────────────────────────────────
openvino-cpu  trusted         7.42       5.23      1.42x     1.61x   88%
fp32          chosen     7.38-7.46  5.20-5.26  1.39-1.45

openvino-cpu  trusted         7.60       5.54      1.37x     1.61x   85%
bf16                     7.55-7.65  5.51-5.58  1.34-1.40

openvino-cpu  untrusted       6.10       6.34      0.96x     1.61x   60%
int8          refused    6.06-6.14  6.30-6.38  0.94-0.98

openvino-cpu fp32: 1.42x as fast as dense (1.39-1.45), MACs promised 1.61x: 88%
of the promise kept. It answers like the dense model on 94.3% of 648 images;
top-1 is 78.6%, 0.6 points lost (-0.2 to 1.4).
openvino-cpu int8 refused: slower than fp32 on this target: 6.34 ms against 5.23
ms.
openvino-cpu int8 untrusted: the candidate's second half took +11.2% against its
first, allowed 5.0%.
orin-nano fp16 not built: no TensorRT here: pip install edgevit[tensorrt].
"""

WIDE = """\
deit-tiny-orin  deit_tiny_patch16_224, weights: deit_tiny.safetensors
Warning: 2 of 650 evaluation images were corrupt and skipped
candidate          model     MACs   params     file  top-1  agree  median ms (95 %)    speed-up (95 %)  promised  kept  verdict
──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
openvino-cpu fp32  dense  1.254 G  5.717 M  23.0 MB  79.2%      -  7.42 (7.38-7.46)
                   slim   0.780 G  3.902 M  15.8 MB  78.6%  94.3%  5.23 (5.20-5.26)  1.42x (1.39-1.45)     1.61x   88%  trusted, chosen

openvino-cpu bf16  dense  1.254 G  5.717 M  11.6 MB  79.0%      -  7.60 (7.55-7.65)
                   slim   0.780 G  3.902 M   8.0 MB  78.4%  94.3%  5.54 (5.51-5.58)  1.37x (1.34-1.40)     1.61x   85%  trusted

openvino-cpu int8  dense  1.254 G  5.717 M   5.9 MB  77.7%      -  6.10 (6.06-6.14)
                   slim   0.780 G  3.902 M   4.1 MB  77.1%  94.3%  6.34 (6.30-6.38)  0.96x (0.94-0.98)     1.61x   60%  untrusted, refused

openvino-cpu fp32: 1.42x as fast as dense (1.39-1.45), MACs promised 1.61x: 88% of the promise kept. It answers like the dense model on
94.3% of 648 images; top-1 is 78.6%, 0.6 points lost (-0.2 to 1.4).
openvino-cpu int8 refused: slower than fp32 on this target: 6.34 ms against 5.23 ms.
openvino-cpu int8 untrusted: the candidate's second half took +11.2% against its first, allowed 5.0%.
orin-nano fp16 not built: no TensorRT here: pip install edgevit[tensorrt].
"""  # noqa: E501 (the table is wide)

COMPARISON = """\
build                 MACs  top-1  drop  agree         ms   speed-up  kept
──────────────────────────────────────────────────────────────────────────
vo32-hidden512     0.780 G  78.6%   0.6  94.3%       4.40      1.69x  105%
openvino-cpu fp32                               4.37-4.43  1.65-1.72
vo48               0.780 G  78.6%   0.6  94.3%       5.23      1.42x   88%
openvino-cpu fp32                               5.20-5.26  1.39-1.45
drop in points of top-1; ms and speed-up with their 95 % intervals.
"""


def _text(width: int, *reports: Report) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    if len(reports) == 1:
        render(reports[0], console)
    else:
        render_comparison(reports, console)
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def test_render_at_80_columns_shows_two_tables_and_sentences() -> None:
    assert _text(80, report()) == NARROW


def test_render_at_140_columns_shows_one_table() -> None:
    assert _text(140, report()) == WIDE


def test_render_comparison_puts_the_fastest_first() -> None:
    assert _text(80, report("vo48"), report("vo32-hidden512", slim_ms=4.4)) == COMPARISON


@pytest.mark.parametrize("width", [80, 100, 139, 140, 200])
def test_render_at_any_width_keeps_every_number_whole(width: int) -> None:
    text = _text(width, report())
    assert max(map(len, text.splitlines())) <= width
    for number in (
        "1.254 G",
        "0.780 G",
        "5.717 M",
        "15.8 MB",
        "79.2%",
        "94.3%",
        "5.20-5.26",
        "1.39-1.45",
        "88%",
    ):
        assert number in text, number
    assert "…" not in text


def test_render_prints_only_on_the_console_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    _text(80, report())
    _text(80, report(), report("b"))
    assert capsys.readouterr() == ("", "")


def test_render_of_brackets_in_names_shows_them() -> None:
    warned = report("run[bold]1").model_copy(update={"warnings": ("[red]random weights[/red]",)})
    text = _text(80, warned)
    assert "run[bold]1  deit" in text
    assert "Warning: [red]random weights[/red]\n" in text


def test_render_without_labels_shows_no_top1_but_agreement() -> None:
    text = _text(80, report(labelled=False))
    assert "78.6%" not in text
    assert "on 94.3% of 648 images; they have no labels, so top-1 is unknown." in text.replace("\n", " ")


@pytest.mark.parametrize(
    ("measured", "interval", "said"),
    [
        (
            1.42,
            (1.39, 1.45),
            "1.42x as fast as dense (1.39-1.45), MACs promised 1.60x: 89% of the promise kept.",
        ),
        (1.01, (0.98, 1.04), "no faster as far as can be told, 1.01x (0.98-1.04), MACs promised 1.60x: 63%"),
        (0.8, (0.7, 0.9), "slower than dense, 0.80x as fast (0.70-0.90), MACs promised 1.60x: 50%"),
    ],
)
def test_speed_sentence_says_what_the_interval_allows(
    measured: float, interval: tuple[float, float], said: str
) -> None:
    speedup = Speedup(measured=measured, interval=interval, estimated=1.6, promise=measured / 1.6)
    found = result("fp32", 2.0, 1.0).model_copy(update={"speedup": speedup})
    assert phrases.speed(found).startswith(said)
    doubted = found.model_copy(update={"verdict": "untrusted", "why": "too few samples: 30"})
    assert phrases.speed(doubted).endswith("kept. Do not trust this timing: too few samples: 30.")


def test_findings_without_a_chosen_candidate_speak_of_all_that_are_offered() -> None:
    made = report()
    unchosen = [r.model_copy(update={"chosen": False}) for r in made.results]
    said = phrases.findings(made.model_copy(update={"results": tuple(unchosen)}))
    assert [line.split(":")[0] for line in said[:2]] == ["openvino-cpu fp32", "openvino-cpu bf16"]
    refused = tuple(r.model_copy(update={"refused": "slower than dense"}) for r in unchosen)
    assert phrases.findings(made.model_copy(update={"results": refused}))[0].startswith(
        "No candidate is offered"
    )


def test_findings_say_what_the_training_changed_of_unlabelled_images() -> None:
    facts = TuneFacts(
        epochs=6, seconds=9.0, loss_first=0.5, loss_last=0.25, precision="fp32", seed=0, images=9,
        measured_on="openvino-cpu bf16", agreement_before=0.8,
    )  # fmt: skip
    found = phrases.findings(report(labelled=False).model_copy(update={"tune": facts}))
    assert "The training took agreement from 80.0% to 94.3% (openvino-cpu bf16)." in found


KITS_ALONE = """\
deit-tiny-orin  deit_tiny_patch16_224, weights: deit_tiny.safetensors
Warning: 2 of 650 evaluation images were corrupt and skipped
model     MACs   params
───────────────────────
dense  1.254 G  5.717 M
slim   0.780 G  3.902 M

orin-nano fp32 and fp16 not built: it runs elsewhere.
orin-nano int8 not built: no calibration images.
Graphs for orin-nano, fp32 and fp16 dense: accepted by the parser of tensorrt
10.15.
Graphs for orin-nano, fp16 slim: tensorrt 10.15 refused it: blocks.3.mlp: no
such operator.
Graphs for orin-nano, int8: not checked: no parser could be asked.
"""


def test_render_of_a_build_for_boards_shows_the_models_and_says_each_thing_once() -> None:
    missing = [
        ("fp32", "it runs elsewhere"),
        ("fp16", "it runs elsewhere"),
        ("int8", "no calibration images"),
    ]
    asked = {"target": "orin-nano", "parser": "tensorrt 10.15", "outcome": "accepted", "why": ""}
    refused = asked | {"outcome": "refused", "why": "blocks.3.mlp: no such operator"}
    unasked = asked | {"outcome": "unavailable", "parser": None, "why": "no parser could be asked"}
    said = [
        ("fp32", "dense", asked),
        ("fp32", "slim", asked),
        ("fp16", "dense", asked),
        ("fp16", "slim", refused),
    ]
    said += [("int8", "dense", unasked), ("int8", "slim", unasked)]
    made = report().model_copy(
        update={
            "results": (),
            "not_built": tuple(
                NotBuilt(target="orin-nano", precision=name, why=why) for name, why in missing
            ),
            "preflights": tuple(
                PreflightFacts.model_validate({"precision": name, "side": side} | facts)
                for name, side, facts in said
            ),
        }
    )
    assert _text(80, made) == KITS_ALONE


def test_findings_of_a_refusal_for_its_timing_say_so_once() -> None:
    made = report()
    why = made.results[2].why
    refused = made.results[2].model_copy(update={"refused": f"untrusted timing: {why}"})
    said = phrases.findings(made.model_copy(update={"results": (*made.results[:2], refused)}))
    assert [line for line in said if why in line] == [f"openvino-cpu int8 refused: untrusted timing: {why}."]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (phrases.count(1_253_710_848), "1.254 G"),
        (phrases.count(779_671_000), "779.7 M"),
        (phrases.count(779_671_000, 1_253_710_848), "0.780 G"),
        (phrases.count(17_564_000_000), "17.56 G"),
        (phrases.count(512), "512"),
        (phrases.size(3_902), "3.9 kB"),
        (phrases.size(512), "512 B"),
        (phrases.milliseconds(0.08123), "0.0812"),
        (phrases.milliseconds(0.812), "0.812"),
        (phrases.milliseconds(123.45), "123.5"),
        (phrases.milliseconds_interval((9.9, 10.123), 10.0), "9.90-10.12"),
        (phrases.share(None), "-"),
    ],
)
def test_numbers_are_written_with_fitting_digits(written: str, expected: str) -> None:
    assert written == expected


INT8 = """\
slim in int8: 1 of 3 layers (44.5% of their MACs) went back to float for
max_drop 0.1; with all in int8: 0.31 points of top-1 expected to be lost, 98.4%
alike; now: 0.08 points of top-1 expected to be lost, 99.2% alike, on 256
calibration images against fp32.
layer                MACs  SQNR dB        KL  computed in
─────────────────────────────────────────────────────────
blocks.0.mlp.fc2  29.05 M     26.7  1.45e-03  float (1.)
patch_embed       28.90 M     32.0  1.36e-03  int8
blocks.0.attn.k    7.26 M     32.1  3.26e-05  int8
"""


def test_render_int8_shows_each_layer_and_what_went_back() -> None:
    output = io.StringIO()
    render_int8(report().model_copy(update={"int8": (int8_facts(),)}), Console(file=output, width=80))
    assert "\n".join(line.rstrip() for line in output.getvalue().split("\n")).rstrip() + "\n" == INT8


def test_render_int8_without_such_a_graph_says_so() -> None:
    output = io.StringIO()
    render_int8(report(), Console(file=output, width=80))
    assert output.getvalue() == "deit-tiny-orin has no graph in int8.\n"


def test_findings_name_int8_only_where_layers_went_back() -> None:
    whole, limited = int8_facts(returned=False), int8_facts()
    found = phrases.findings(report().model_copy(update={"int8": (whole, limited)}))
    assert [line for line in found if "in int8" in line] == [phrases.int8(limited)]
    assert phrases.int8(whole) == (
        "slim in int8: all 3 layers; 0.31 points of top-1 expected to be lost, 98.4% alike, on 256"
        " calibration images against fp32."
    )


def _with_budget(made: Report | None = None, **changes: object) -> Report:
    return (made or report()).model_copy(update={"budget": time_budget().model_copy(update=changes)})


def test_budget_of_time_says_what_came_of_it_and_how_far_its_table_is_off() -> None:
    spent, table, promise, decided = phrases.budget(_with_budget())
    assert "5.00 of at most 5.00 ms were planned, 5.23 ms measured (openvino-cpu fp32); that is" in spent
    assert "1.42x the dense model's speed, where 1.50x was asked; KL" in spent
    fitted = "KL(dense || slim) 0.03 on calibration images that it was fitted to, so more on others; the cuts"
    one_by_one = f"{fitted} one by one add up to 0.05 on a third of 128 calibration images, fitted to the"
    assert one_by_one in spent
    unseen = _with_budget(judged="evaluation", judged_images=256)
    spent, *_ = phrases.budget(unseen)
    assert "KL(dense || slim) 0.03 on 256 evaluation images, the cuts one by one add up to 0.05" in spent
    assert table == (
        "The latency table is of 32 parts, the worst of which is 2.3% off. Of 2 whole models, each predicted"
        " from the others, the one that is merged once to 60 % is farthest off: 4.0% below what it took."
    )
    assert promise.startswith("Of what MACs promise, most is lost in blocks.11, which keeps ")
    assert decided == "All attention heads stay."
    facts = time_budget().table
    assert facts is not None
    restless = _with_budget(table=facts.model_copy(update={"drift": -0.4}))
    _, table, *_ = phrases.budget(restless)
    assert "2.3% off, timed on a machine that became 40.0% faster meanwhile. Of 2" in table


def test_budget_names_three_blocks_that_lose_most_with_what_was_done_to_them() -> None:
    merged = ReductionFacts(place="blocks.3", strategy="merge", before=197, after=101)
    made = report()
    slow = time_budget().blocks[3].model_copy(update={"measured": 0.8})
    made = made.model_copy(update={"plan": made.plan.model_copy(update={"reductions": (merged,)})})
    blocks = (*time_budget().blocks[:3], slow, *time_budget().blocks[4:])
    [said] = [line for line in phrases.budget(_with_budget(made, blocks=blocks)) if "promise" in line]
    rows = {row.name: row for row in breaking(_with_budget(made, blocks=blocks))}
    third = rows["blocks.3"]
    assert third.kept is not None
    assert said.count("would keep it") == 3
    assert f"blocks.3, which keeps {100 * third.kept:.0f}% (merge, 197 to 101 tokens; " in said
    assert "blocks.11, " in said
    assert "(dead tokens dropped; " in said
    assert "(2 of 3 heads, 48 of 64 QK dims, 48 of 64 VO dims, 480 of 768 hidden neurons; " in said
    assert said.endswith(
        "Blocks were timed alone, and are scaled to what the whole models took; those of the dense blocks are"
        " the latency table's."
    )


def test_budget_of_which_no_block_was_measured_says_that_its_promise_is_planned() -> None:
    blocks = tuple(block.model_copy(update={"measured": None}) for block in time_budget().blocks)
    [said] = [line for line in phrases.budget(_with_budget(blocks=blocks)) if "promise" in line]
    assert "The times are planned; those of the dense blocks are the latency table's." in said


def test_budget_of_latency_says_the_milliseconds_that_were_asked_for() -> None:
    spent, *_ = phrases.budget(_with_budget(key="latency_ms", asked=5.0))
    assert "5.23 ms measured (openvino-cpu fp32), where 5 ms were asked; that is 1.42x the dense" in spent
    assert "x was asked" not in spent


def test_budget_that_planned_for_another_precision_than_was_chosen_says_so() -> None:
    made = report()
    others = [r.model_copy(update={"chosen": r.precision == "bf16"}) for r in made.results]
    spent, *_ = phrases.budget(_with_budget(made.model_copy(update={"results": tuple(others)})))
    assert "where 1.50x was asked; planned for fp32, bf16 was chosen; KL" in spent
    assert "planned for" not in phrases.budget(_with_budget(made))[0]


def test_budget_of_an_older_report_names_no_blocks() -> None:
    blocks = tuple(block.model_copy(update={"dense": None}) for block in time_budget().blocks)
    assert not any("promise" in line for line in phrases.budget(_with_budget(key=None, blocks=blocks)))
