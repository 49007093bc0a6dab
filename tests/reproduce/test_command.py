"""``python -m reproduce`` as a person calls it: counted, trained, killed, resumed, filled from a run."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Command, paint

TINY = ("--seeds", 2, "--set", "epochs=2", "--set", "data.image_size=16", "--set", "batch_size=96")
TABLE = "xvolution-table4"


def table(out: Path, name: str) -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_list_names_everything(command: Command):
    found = command("--list")
    assert found.code == 0
    for name in ("acmix-figure1", "acmix-supplement-table5", "xvolution-figure3b", "xvolution-table7"):
        assert name in found.out
    assert "not computed: A drawing" in found.out
    assert "needs the data set, 8 GPUs; days" in found.out


def test_counts_fill_a_table_and_the_page(command: Command, tmp_path):
    found = command("acmix-table1", "xvolution-table7", "--out", tmp_path)
    assert (found.code, found.err) == (0, "")
    assert "36 of 36" in found.out
    rows = table(tmp_path, "acmix-table1")
    assert all(float(row["ours"]) >= 0 for row in rows)
    assert {row["command"] for row in rows} == {"python -m reproduce acmix-table1 --scale count"}
    assert (tmp_path / "acmix-table1.png").read_bytes().startswith(b"\x89PNG")
    assert "0.1 must be a slip for 0.01" in (tmp_path / "acmix-table1.md").read_text()
    page = (tmp_path / "index.html").read_text()
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == [], "the page loads nothing"
    assert "<script" not in page
    assert page.count('<img class="picture"') == 2, "of what was run"
    assert "not run" not in page, "nothing that was not asked for"
    tables = {path.stem for path in tmp_path.glob("*.csv")}
    assert tables == {path.stem for path in tmp_path.glob("*.md")} == {"acmix-table1", "xvolution-table7"}
    assert set(re.findall(r'<section id="([^"]*)"', page)) == tables


def test_the_page_has_what_was_asked_for_and_what_was_made_before(command: Command, tmp_path):
    for words in (["acmix-table1"], ["acmix-figure4", "--scale", "full"]):
        assert command(*words, "--out", tmp_path).code == 0
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r'<section id="([^"]*)"', page) == ["acmix-figure4", "acmix-table1"]
    assert {row["scale"] for row in table(tmp_path, "acmix-figure4")} == {"full"}
    assert "convattn train --recipe imagenet-resnet --data imagenet/ --model acmix_resnet26 --devices 8" in page
    assert command("acmix-table1", "--out", tmp_path).code == 0
    assert "acmix-figure4" not in (tmp_path / "index.html").read_text(), "no number of ours is in it"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["acmix-tabel6"], "no table or figure 'acmix-tabel6': did you mean acmix-table6"),
        (["--scale", "huge"], "--scale must be one of count, speed, photos, digits, clipart, scenes, full, got 'huge'"),
        (["acmix-table1", "--scale", "digits"], "nothing of these has --scale digits: acmix-table1: it has count"),
        (["acmix-figure1"], "acmix-figure1: A drawing"),
        (["--set", "epochs"], "'epochs' is no setting: write key=value"),
        (["--scale", "digits", "--set", "epoch=2"], "unknown key 'epoch': did you mean epochs"),
        (["--from", "no/such/run"], "no such run: no/such/run"),
    ],
)
def test_wrong_calls_say_what_to_do(command: Command, tmp_path, words, message):
    found = command(*words, "--out", tmp_path)
    assert found.code == 2
    assert message in " ".join(found.err.split())


def test_two_in_one_folder_are_refused(command: Command, tmp_path):
    pytest.importorskip("fcntl")
    hold = "import fcntl, sys; file = open('.lock', 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
    program = [sys.executable, "-c", hold]
    with subprocess.Popen(program, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        found = command("acmix-table1", "--out", tmp_path)
        other.communicate(b"\n")
    assert found.code == 2
    assert "another process runs 'python -m reproduce' there: wait until it ends" in found.err


def test_a_finished_run_fills_its_published_row(command: Command, tmp_path):
    from convattn.tasks.recipes import load_recipe
    from convattn.tasks.training import prepare, train

    for name, color in {"red": (255, 0, 0), "blue": (0, 0, 255)}.items():
        for part, count in (("train", 4), ("val", 2)):
            for number in range(count):
                paint(tmp_path / "data" / part / name / f"{number}.png", color, number)
    settings = {"model": "san10", "data.folder": str(tmp_path / "data"), "data.image_size": 32, "epochs": 1}
    settings |= {"batch_size": 8, "data.workers": 0, "trainer.accelerator": "cpu", "optimizer.lr": 0.001}
    train(prepare(load_recipe("imagenet-san", settings), tmp_path / "runs"))
    out = tmp_path / "out"
    found = command("--scale", "full", "--from", tmp_path / "runs" / "latest", "--out", out)
    assert (found.code, found.err) == (0, "")
    assert "SAN 10" in found.out
    rows = [row for row in table(out, "acmix-figure4") if row["scale"] == "full"]
    filled = [row for row in rows if row["ours"] != "not run"]
    assert [row["row"] for row in filled] == ["SAN 10"]
    assert 0 <= float(filled[0]["ours"]) <= 100
    assert "epochs 1 in place of 100" in filled[0]["why"]
    assert command("acmix-table7", "--scale", "full", "--out", out).code == 0
    assert table(out, "acmix-figure4") != [], "what was filled stays filled"
    assert any(row["ours"] != "not run" and row["scale"] == "full" for row in table(out, "acmix-figure4"))
    other = command("--from", make_stranger(tmp_path), "--out", out)
    assert other.code == 2
    assert "fits no row: it trained san15" in " ".join(other.err.split())


def make_stranger(tmp_path: Path) -> Path:
    """The same run, said to be of a recipe that no row has."""
    run = (tmp_path / "runs" / "latest").resolve()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("model: san10", "model: san15").replace("about: ", "about: not "))
    return run


def start(out: Path) -> subprocess.Popen:
    words = [TABLE, "--scale", "digits", *map(str, TINY), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = (out.parent / f"{out.name}.log").open("a")
    program = [sys.executable, "-m", "reproduce"]
    return subprocess.Popen([*program, *words], stdout=log, stderr=log, env=environment)


def numbers(out: Path) -> list[dict[str, str]]:
    """All that a table says but for the commit, which may have moved on between two starts."""
    return [{key: text for key, text in row.items() if key != "commit"} for row in table(out, TABLE)]


def epochs_of(out: Path) -> int:
    return sum(len(path.read_text().splitlines()) - 1 for path in (out / "runs").glob("*-*/metrics.csv"))


@pytest.mark.slow
def test_killed_twice_and_resumed_the_tables_are_the_same(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(500) == 0
    for least in (3, 8):  # in the middle of the second and of the fourth run, or soon after
        child = start(killed)
        while epochs_of(killed) < least:
            assert child.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    assert start(killed).wait(500) == 0
    assert numbers(killed) == numbers(whole)
    assert (killed / f"{TABLE}.png").read_bytes() == (whole / f"{TABLE}.png").read_bytes()
    rows = [row for row in table(killed, TABLE) if row["scale"] == "digits"]
    assert [row["seeds"] for row in rows] == ["2"] * 4
    assert epochs_of(killed) == 16
    assert not list(killed.glob("runs/*/checkpoints")), "finished runs keep their weights alone"


@pytest.mark.slow
def test_several_at_a_time_stop_and_go_on(tmp_path):
    """Ctrl-C with two processes leaves every run resumable; the tables are those of one process."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert start(alone).wait(500) == 0
    words = [TABLE, "--scale", "digits", *map(str, TINY), "--out", str(together), "--jobs", "2"]
    program = [sys.executable, "-m", "reproduce", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "said.txt").open("w") as said:
        child = subprocess.Popen(program, env=environment, stdout=said, stderr=said, start_new_session=True)
    while epochs_of(together) < 3:
        assert child.poll() is None
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    assert child.wait(120) == 130
    assert "Traceback" not in (tmp_path / "said.txt").read_text()
    assert 0 < epochs_of(together) < 16
    assert subprocess.run(program, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert numbers(together) == numbers(alone)
