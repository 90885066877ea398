"""What is seen of a call: a bar a stage on a terminal, a line a stage in the log, and nothing of the libraries."""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import stcontrast as stc
from stcontrast import _progress
from stcontrast._progress import Stage, duration, of_part, parts_of, shows_progress, stage, steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from spatialdata import SpatialData


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What was to be seen, one after another."""
        found = re.split(r"[\r\n]|\x1b\[A", self.getvalue())
        return [line.strip() for line in found if line.strip()]

    @property
    def names(self) -> list[str]:
        """Names of the bars, in order, each once in a row."""
        names = [re.split(r":\s+\d+%| \[", line)[0] for line in self.lines]
        return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    fake = Terminal()
    # (pytest puts a stream of its own into `sys` between this and the test)
    monkeypatch.setattr(_progress, "sys", SimpleNamespace(stderr=fake, modules=sys.modules))
    monkeypatch.setattr(_progress, "DELAY_S", 0.0)
    with stc.settings.override(progress=True):
        yield fake
    # the thread that draws ends by itself once nothing is left to be drawn
    deadline = time.monotonic() + 5
    while _progress._TICKING.is_set() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _progress._OPEN
    assert not _progress._TICKING.is_set()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="stcontrast")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "stcontrast._progress"]


# --- where something is shown


@pytest.mark.parametrize(
    ("setting", "is_terminal", "shown"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_bars_are_for_terminals_and_one_switch_turns_them_off(
    monkeypatch: pytest.MonkeyPatch, *, setting: bool, is_terminal: bool, shown: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if is_terminal else io.StringIO())
    with stc.settings.override(progress=setting):
        assert shows_progress() is shown


def test_a_session_without_an_error_stream_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with stc.settings.override(progress=True), stage("x"):
        assert not shows_progress()


def test_a_terminal_without_size_shows_bars(terminal: Terminal) -> None:
    with stage("x", total=2) as here:
        here.update()
    assert any("x:" in line for line in terminal.lines)


# --- stages


def test_a_call_is_shown_at_once_and_its_stages_one_at_a_time(terminal: Terminal) -> None:
    with stage("fit", whole=True):
        assert terminal.names == ["fit"]
        for name in ("one", "two"):
            with stage(name, total=1) as here:
                here.update()
    assert [name for name in terminal.names if name != "fit"] == ["one", "two"]


def test_a_stage_in_a_stage_stands_behind_its_name(terminal: Terminal) -> None:
    with stage("fits", total=2, unit="fits") as outer:
        outer.say("ridge without A")
        with of_part("fold 1 of 2"), stage("gene space", total=9):
            _progress._OPEN[-1].draw()
        assert terminal.lines[-1].endswith("ridge without A, gene space, fold 1 of 2]")
        outer.update()
        assert outer.detail == "ridge without A"
    assert set(terminal.names) == {"fits"}


def test_a_call_within_a_call_is_one_call(terminal: Terminal, log: Callable[[], list[str]]) -> None:
    with stage("predict_slide", whole=True), stage("image_features", whole=True), stage("crops", total=1):
        pass
    assert log() == ["Predict_slide.", "Crops."]
    assert "image_features" not in terminal.getvalue()


def test_parts_are_named_behind_the_stage(log: Callable[[], list[str]]) -> None:
    for _ in parts_of("ab", "fold"):
        with stage("network"):
            pass
    with stage("network"):
        pass
    assert log() == ["Network, fold 1 of 2.", "Network, fold 2 of 2.", "Network."]


def test_slides_that_are_counted_together_are_named_and_logged_once(
    terminal: Terminal, log: Callable[[], list[str]]
) -> None:
    with stage("features, slide A", total=4) as here:
        for name in ("A", "A", "B", "A"):
            here.rename(f"features, slide {name}")
            here.update()
            here.draw()
    assert terminal.names == ["features, slide A", "features, slide B", "features, slide A"]
    assert log() == ["Features, slide A.", "Features, slide B."]


def test_without_a_terminal_there_is_a_line_a_stage_in_the_log(
    log: Callable[[], list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    with stc.settings.override(progress=True), stage("fit", whole=True):
        assert list(steps([1, 2], "completion", unit="steps")) == [1, 2]
    assert log() == ["Fit.", "Completion."]
    assert capfd.readouterr() == ("", "")


def test_what_is_left_after_an_error_is_nothing(terminal: Terminal) -> None:
    def fails() -> None:
        with stage("fit", whole=True), of_part("fold 1 of 2"), stage("network", total=3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert _progress.named("x") == "x"
    # the last thing to be drawn is nothing
    assert terminal.getvalue().endswith("\r")


def test_a_decorated_function_keeps_its_name_and_is_a_stage_in_every_call(log: Callable[[], list[str]]) -> None:
    @stage("doubling", whole=True)
    def double(x: int) -> int:
        """Twice as much."""
        return 2 * x

    assert (double(2), double(x=3), double.__name__, double.__doc__) == (4, 6, "double", "Twice as much.")
    assert log() == ["Doubling.", "Doubling."]


def test_a_clock_runs_while_nothing_is_counted(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "TICK_S", 0.02)
    with stage("gene space"):
        deadline = time.monotonic() + 5
        while len(terminal.lines) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert len(terminal.lines) >= 3


def test_a_total_that_is_known_late(terminal: Terminal) -> None:
    with stage("network", total=3, unit="epochs") as here:
        here.expect(30, initial=10, unit="batches")
        here.update()
        here.draw()
    assert "11/30 batches" in terminal.lines[-1]


def test_a_worker_thread_adds_to_the_stage_of_the_caller(terminal: Terminal) -> None:
    with stage("fits", total=1) as outer:
        said = []

        def work() -> None:
            with stage("gene space"):
                said.append(outer.detail)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert said == ["gene space"]


def test_another_process_gets_a_stage_without_a_bar(terminal: Terminal) -> None:
    with stage("network", total=2, remaining=lambda: 1.0) as here:
        sent: Stage = pickle.loads(pickle.dumps(here))
    before = terminal.getvalue()
    sent.update()
    sent.rename("other")
    assert terminal.getvalue() == before


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (8000, "2 h 13 min")]
)
def test_durations_are_readable(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# --- the public functions


CALLS: dict[str, Callable[[SpatialData], object]] = {
    "image_features": lambda sdata: stc.pp.image_features(sdata, field_um=(100, 200)),
    "fit": lambda sdata: stc.tl.fit(sdata, batch_key="donor", label_key="subtype", options={"max_epochs": 2}),
    "fit of a published method": lambda sdata: stc.tl.fit(
        sdata, batch_key="donor", method="bleep", options={"max_epochs": 2}
    ),
    "embed_genes": lambda sdata: stc.tl.embed_genes(sdata, batch_key="donor", max_epochs=2),
    "cross_validate": lambda sdata: stc.tl.cross_validate(
        sdata, donor_key="donor", methods={"stcontrast": {"max_epochs": 2}, "mean": {}}, n_jobs=1
    ),
    "predict_expression": lambda sdata: stc.tl.predict_expression(
        sdata, stc.tl.fit(sdata, batch_key="donor", method="mean", label_key="subtype")
    ),
    "classify": lambda sdata: stc.tl.classify(
        sdata, stc.tl.fit(sdata, batch_key="donor", method="mean", label_key="subtype")
    ),
    "fine-tuning": lambda sdata: stc.tl.fit(
        sdata, batch_key="donor", method="ridge", image_tower="finetune", tower_options={"epochs": 1},
        encoder=stc.pp.TimmEncoder("test_resnet", pretrained=False, size_px=32),
    ),
}  # fmt: skip
OURS = (
    r"image features|fit|embed_genes|cross_validate|predict_expression|classify|reading (slides|counts)|crops|"
    r"features, (slide \S+|which are there)|features of the fine-tuned encoder|ridge regression|subtypes|fits|"
    r"(gene space|gene space \(VAE\)|contrastive network|method \w+|ridge regression|fine-tuning)(, fold \d of \d)?"
)
EXPECTED = {
    "image_features": ["features, slide donor1_a"],
    "fit": ["gene space, fold 2 of 2", "contrastive network, fold 1 of 2", "contrastive network", "subtypes"],
    "fit of a published method": ["contrastive network, fold 2 of 2", "contrastive network"],
    "embed_genes": ["gene space (VAE)"],
    "cross_validate": ["features, slide donor1_a", "fits"],
    "fine-tuning": ["crops", "fine-tuning, fold 1 of 2", "fine-tuning", "features of the fine-tuned encoder"],
}


@pytest.fixture
def slides() -> SpatialData:
    return stc.datasets.toy(n_donors=2, n_spots=25, n_genes=30)


@pytest.mark.parametrize(
    "call", [pytest.param(call, marks=[pytest.mark.slow] if call == "fine-tuning" else []) for call in CALLS]
)
def test_every_bar_on_a_terminal_has_a_name_of_ours(
    call: str, slides: SpatialData, terminal: Terminal, capfd: pytest.CaptureFixture[str]
) -> None:
    CALLS[call](slides)
    assert [name for name in terminal.names if re.fullmatch(OURS, name) is None] == []
    assert set(EXPECTED.get(call, [])) <= set(terminal.names)
    # what does not go through Python's stream
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("asked", "shown"), [({}, True), ({"enable_progress_bar": False}, False)])
def test_a_training_of_the_users_own_vae_can_be_told_not_to_count(
    slides: SpatialData, terminal: Terminal, *, asked: dict[str, Any], shown: bool
) -> None:
    table = slides["table"]
    stc.models.BatchAgnosticVAE.setup_anndata(table, batch_key="donor")
    stc.models.BatchAgnosticVAE(table).train(max_epochs=5, **asked)
    assert ("batches" in terminal.getvalue()) is shown


@pytest.mark.parametrize("call", ["fit", "cross_validate"])
def test_without_a_terminal_a_call_is_silent_and_logs_its_stages(
    call: str, slides: SpatialData, capfd: pytest.CaptureFixture[str], log: Callable[[], list[str]]
) -> None:
    with stc.settings.override(progress=True):
        CALLS[call](slides)
    assert capfd.readouterr() == ("", "")
    said = [line.lower() for line in log()]
    assert {f"{name.lower()}." for name in [*EXPECTED[call], "features, slide donor2_a"]} <= set(said)


# --- in a session of its own, at default settings

SESSION = """
import sys, time
import stcontrast as stc
from tests.test_progress import CALLS
import scvi, timm, stcontrast.tl.cross_validation
for name in sys.argv[1:]:
    sdata = stc.datasets.toy(n_donors=3, n_spots=60, n_genes=60)
    print("ENTERED", time.time(), flush=True)
    CALLS[name](sdata)
    print("LEFT", time.time(), flush=True)
"""


def start(calls: Iterable[str], **streams: Any) -> subprocess.Popen[bytes]:
    root = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, root])}
    environment.pop("STCONTRAST_PROGRESS", None)
    return subprocess.Popen([sys.executable, "-c", SESSION, *calls], cwd=root, env=environment, **streams)


@pytest.mark.slow
def test_a_session_without_a_terminal_says_nothing() -> None:
    process = start(CALLS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = (text.decode() for text in process.communicate(timeout=600))
    assert process.returncode == 0, err
    assert err == ""
    assert re.fullmatch(rf"(ENTERED [\d.]+\nLEFT [\d.]+\n){{{len(CALLS)}}}", out)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_a_first_sign_early_and_no_library() -> None:
    import pty

    calls = [name for name in CALLS if name.startswith(("fit", "cross_validate", "image_features"))]
    leader, follower = pty.openpty()
    process = start(calls, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    seen: list[tuple[float, bytes]] = []
    while True:
        try:
            data = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        seen.append((time.time(), data))
    os.close(leader)
    assert process.wait(timeout=60) == 0
    screen = Terminal()
    screen.write(b"".join(data for _, data in seen).decode())
    times = [[float(at) for at in re.findall(rf"{word} ([\d.]+)", screen.getvalue())] for word in ("ENTERED", "LEFT")]
    for call, entered, left in zip(calls, *times, strict=True):
        first = next(at for at, data in seen if at > entered and b"[00:" in data)
        # 2 seconds on an idle machine; a busy one takes longer for all of it
        assert first - entered < max(2, (left - entered) / 3), call
    names = [name for name in screen.names if not name.startswith(("ENTERED", "LEFT"))]
    assert [name for name in names if re.fullmatch(OURS, name) is None] == []


NOTEBOOK = """
import stcontrast as stc
sdata = stc.datasets.toy(n_donors=2, n_spots=60, n_genes=60)
model = stc.tl.fit(sdata, batch_key="donor", label_key="subtype", options={"max_epochs": 20})
stc.tl.predict_expression(sdata, model);
"""


@pytest.mark.slow
def test_a_notebook_shows_bars_of_ours_alone() -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient to run a notebook")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="needs ipykernel to run a notebook")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    nbclient.NotebookClient(notebook, timeout=300).execute(env=environment)
    screen = Terminal()
    for output in notebook.cells[0].outputs:
        assert output.output_type in ("stream", "display_data"), output
        if output.output_type == "stream":
            screen.write(output.text)
    assert [name for name in screen.names if re.fullmatch(OURS, name) is None] == []
    assert screen.names or any(output.output_type == "display_data" for output in notebook.cells[0].outputs)
