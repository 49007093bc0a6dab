"""The documents say what is true: their code runs, their commands parse, their links and figures hold."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import benchmarks.command
import convattn
import reproduce.command
from benchmarks.memory import KEPT, PEAK
from benchmarks.record import read_record

ROOT = Path(__file__).parent.parent
CHECKOUT = {"benchmarks": benchmarks.command.app, "reproduce": reproduce.command.app}
"""The programs of a checkout by the packages that hold them."""
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *(ROOT / f"{name}/README.md" for name in CHECKOUT)])
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\((?P<target>[^)\s]+)\)")
OPTIONAL = {"peft", "segmentation_models_pytorch", "transformers", "ultralytics"}
"""Packages that a page shows beside this one; it is skipped where they are missing."""
# The brackets keep the patterns from matching themselves.
MACHINE_PATH = re.compile(r"(?<![\w.~/])/(?:[h]ome|[r]oot|[w]ork|[t]mp|[o]pt|[U]sers|[m]nt)/")


def blocks(page: str, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page in these languages: the line each starts on, and its text."""
    return [
        (page.count("\n", 0, found.start()) + 1, found["body"])
        for found in FENCE.finditer(page)
        if found["language"] in languages
    ]


def commands(page: str) -> list[tuple[int, list[str]]]:
    """Every line of a page's shell blocks as words, comments and prompts taken off."""
    found = []
    for start, body in blocks(page, "sh", "bash", "console"):
        joined = body.replace("\\\n", "  ")
        for offset, line in enumerate(joined.splitlines(), start + 1):
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            if words:
                found.append((offset, words))
    return found


def refusal(words: list[str]) -> str | None:
    """Why ``convattn`` would not take these words, or None: parsed by the command itself, then nothing is run."""
    from convattn.cli import app

    words = words[: words.index(">")] if ">" in words else words
    # --help is acted upon once the words are parsed, and before any file is looked for
    result = CliRunner().invoke(app, [*words, "--help"])
    if result.exit_code != 0:
        return result.output or str(result.exception)
    if words and words[0] == "train":
        # the weights of a run bring settings with them, and there is no run
        return wrong_settings([word for word in words if re.fullmatch(r"(?!(?:backbone_)?weights=)[a-z_.]+=.*", word)])
    return None


def wrong_settings(settings: list[str]) -> str | None:
    """Why the recipe would not take these ``key=value`` words, or None."""
    from convattn.errors import UserError
    from convattn.tasks.recipes import load_recipe, parse_overrides

    try:
        load_recipe("digits", parse_overrides(settings))
    except UserError as error:
        return str(error)
    return None


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower()))


def broken_links(page: str, at: Path) -> list[str]:
    """The links of a page whose file or heading is not there."""
    broken = []
    for found in LINK.finditer(FENCE.sub("", page)):
        target, _, anchor = found["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (at.parent / target).resolve() if target else at
        text = page if path == at else path.read_text() if path.is_file() else ""
        headings = [slug(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")]
        if not path.exists() or (anchor and anchor not in headings):
            broken.append(found["target"])
    return broken


each_page = pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])


@each_page
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace, as a reader would try them."""
    monkeypatch.chdir(tmp_path)
    text = path.read_text()
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, body in blocks(text, "python", "py"):
        # the blank lines make a traceback point into the page
        try:
            exec(compile("\n" * line + body, str(path), "exec"), namespace)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            pytest.skip(f"needs {error.name}: pip install 'convattn[dev]'")


@each_page
def test_commands_parse(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line, words in commands(path.read_text()):
        where = f"{path.relative_to(ROOT)}:{line}: {shlex.join(words)}"
        if words[0] == "convattn":
            assert (why := refusal(words[1:])) is None, f"{where}\n{why}"
        elif words[:2] == ["python", "-m"] and words[2] in CHECKOUT:
            result = CliRunner().invoke(CHECKOUT[words[2]], [*words[3:], "--help"])
            assert result.exit_code == 0, f"{where}\n{result.output or result.exception}"
        elif words[0] == "make":
            assert set(words[1:]) <= targets, f"{where}: the Makefile has {sorted(targets)}"


def help_examples() -> list[str]:
    """The commands that the command's own help texts show, explanations taken off."""
    from convattn.cli import app

    lines = [
        line.strip() for command in app.registered_commands for line in (command.callback.__doc__ or "").split("\n")
    ]
    return [re.split(r"\s{2,}", line)[0] for line in lines if line.startswith("convattn ")]


@pytest.mark.parametrize("example", help_examples())
def test_examples_in_the_help_parse(example: str) -> None:
    assert (why := refusal(shlex.split(example)[1:])) is None, why


def test_every_verb_shows_examples() -> None:
    from convattn.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {example.split()[1] for example in help_examples()} == verbs


@each_page
def test_links_resolve(path: Path) -> None:
    assert broken_links(path.read_text(), path) == []


@each_page
def test_no_path_of_one_machine(path: Path) -> None:
    found = MACHINE_PATH.findall(path.read_text())
    assert not found, f"{path.relative_to(ROOT)}: write a path that every reader has"


def navigated(entry: object) -> Iterator[str]:
    """The pages of a navigation, those of its sections too."""
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from navigated(inner)


def test_every_page_is_in_the_navigation() -> None:
    listed = set(navigated(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert listed == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


DOCUMENTED = ("convattn", *(f"convattn.{room}" for room in ("layers", "ops", "cost", "detection", "segmentation")))
DIRECTIVE = re.compile(r"^::: (?P<name>[\w.]+)$", re.MULTILINE)


@pytest.mark.parametrize("package", DOCUMENTED)
def test_every_public_function_and_class_is_in_the_reference(package: str) -> None:
    pages = [path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md")]
    listed = {name.rpartition(".")[2] for page in pages for name in DIRECTIVE.findall(page)}
    module = importlib.import_module(package)
    public = {name for name in module.__all__ if inspect.isfunction(it := getattr(module, name)) or inspect.isclass(it)}
    assert public - listed == set()


def test_every_name_in_the_reference_exists() -> None:
    for path in (ROOT / "docs" / "reference").glob("*.md"):
        for name in DIRECTIVE.findall(path.read_text()):
            home, _, last = name.rpartition(".")
            assert hasattr(importlib.import_module(home), last), f"{path.name}: there is no {name}"


def test_the_version_is_the_same_everywhere() -> None:
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project is not None, "pyproject.toml has no version"
    assert newest is not None, "CHANGELOG.md has no released version"
    assert {project[1], citation["version"], newest[1]} == {convattn.__version__}


def test_both_papers_are_cited() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    titles = [reference["title"] for reference in citation["references"]]
    assert titles == [
        "On the Integration of Self-Attention and Convolution",
        "X-volution: On the Unification of Convolution and Self-attention",
    ]
    readme = (ROOT / "README.md").read_text()
    assert [title for title in titles if title not in readme] == []


def models_table() -> list[tuple[str, str, str, str]]:
    """The rows of the page on networks: name, parameters in M, GMACs as counted, GMACs by the papers' convention."""
    row = re.compile(r"^\| `(\w+)` \| [^|]* \| ([\d.]+) \| [^|]* \| ([\d.]+) \| ([\d.]+) \|", re.MULTILINE)
    return row.findall((ROOT / "docs" / "networks.md").read_text())


def test_the_models_table_names_the_papers_resnets() -> None:
    names = {f"{kind}_resnet{depth}" for kind in ("conv", "sasa", "acmix") for depth in (26, 38, 50)}
    assert {row[0] for row in models_table()} == names


@pytest.mark.parametrize(("name", "parameters", "macs", "published_macs"), models_table())
def test_the_models_table_is_what_is_counted(name: str, parameters: str, macs: str, published_macs: str) -> None:
    import timm

    model = timm.create_model(name)
    counted, published = convattn.cost.count(model), convattn.cost.count(model, convention="published")
    assert f"{counted.parameters / 1e6:.2f}" == parameters
    assert f"{counted.macs / 1e9:.2f}" == macs
    assert f"{published.macs / 1e9:.2f}" == published_macs


class TestTheCheckers:
    """Each checker is shown something wrong."""

    def test_blocks_and_commands_are_found(self) -> None:
        page = "# A\n```python\nx = 1\n```\n\n```sh\n$ convattn list   # all\nconvattn train \\\n  epochs=3\n```\n"
        assert blocks(page, "python") == [(2, "x = 1\n")]
        assert [words for _, words in commands(page)] == [["convattn", "list"], ["convattn", "train", "epochs=3"]]

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("trian", "trian"),
            ("train --epcohs 3", "--epcohs"),
            ("train optimiser.lr=1", "optimizer"),
            ("val --folder photos/", "--folder"),
        ],
    )
    def test_a_wrong_command_is_refused(self, line: str, why: str) -> None:
        refused = refusal(shlex.split(line))
        assert refused is not None
        assert why in refused

    def test_a_broken_link_is_found(self, tmp_path: Path) -> None:
        (tmp_path / "b.md").write_text("# The second page\n")
        page = (
            "[1](b.md) [2](b.md#the-second-page) [3](#top) [4](c.md) [5](b.md#third) [6](https://example.org)\n# Top\n"
        )
        (tmp_path / "a.md").write_text(page)
        assert broken_links(page, tmp_path / "a.md") == ["c.md", "b.md#third"]

    def test_a_path_of_one_machine_is_found(self) -> None:
        assert MACHINE_PATH.search("see " + "/".join(["", "home", "me", "x"]))
        assert not MACHINE_PATH.search("your/home/x, https://example.org/home/x, runs/latest")


MEMORY_ROW = re.compile(r"^\| (?P<layer>[^|]+) \| (?P<peak>\d+) \| (?P<kept>\d+) \|$", re.MULTILINE)


def test_the_memory_table_is_what_its_record_holds() -> None:
    page = (ROOT / "docs" / "operators.md").read_text()
    named = re.search(r"`(results/memory-[\d-]+\.json)`", page)
    assert named, "docs/operators.md names no memory record"
    record = read_record(ROOT / named[1])
    measured = {
        (layer, *(str(round(series[kind].median / 2**20)) for kind in (PEAK, KEPT)))
        for layer, series in record.results.items()
    }
    assert {row.groups() for row in MEMORY_ROW.finditer(page)} == measured


COST_ROW = re.compile(
    r"^\| (?P<what>[^|]+) \| (?P<plain>[\d.]+) \| (?P<acmix>[\d.]+) \| (?P<ratio>[\d.]+) \|$", re.MULTILINE
)


def test_the_cost_table_of_the_readme_is_what_was_counted_and_measured() -> None:
    """The measured rows are those of the page of benchmarks, which is written from the records."""
    import timm

    expected: dict[str, tuple[str, ...]] = {}
    counts = [convattn.cost.count(timm.create_model(f"{kind}_resnet50")) for kind in ("conv", "acmix")]
    for what, values in {
        "parameters, M": [count.parameters / 1e6 for count in counts],
        "multiply-adds, G": [count.macs / 1e9 for count in counts],
    }.items():
        expected[what] = (*(f"{value:.2f}" for value in values), f"{values[1] / values[0]:.2f}")
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in page.splitlines()]
    for kind, batch in (("inference", "1"), ("inference", "8"), ("training step", "8")):
        case = [kind, "224²", batch, "2 threads, float32", "acmix_resnet50"]
        plain, acmix = next(pair for pair in pairwise(rows) if len(pair[1]) == 11 and pair[1][:5] == case)
        expected[f"{kind}, batch {batch}, ms"] = plain[5], acmix[5], acmix[7]
        if acmix[8] != "–":
            expected[f"{kind}, batch {batch}, peak MiB"] = plain[8], acmix[8], acmix[9]
    for operators, name in (("convattn", "our operators"), ("standard", "standard operators")):
        case = ["onnxruntime", operators, "1", "2 threads, float32", "acmix_resnet50"]
        plain, acmix = next(pair for pair in pairwise(rows) if len(pair[1]) == 10 and pair[1][:5] == case)
        expected[f"exported, onnxruntime, {name}, batch 1, ms"] = plain[5], acmix[5], acmix[7]
    shown = {found["what"]: found.groups()[1:] for found in COST_ROW.finditer((ROOT / "README.md").read_text())}
    assert shown == expected
