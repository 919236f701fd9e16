"""evals/tasks/: RCM, VSP and ATE, their parsing, figures, baselines without test items, and verdicts."""

import json
import shutil

import pytest

from evals.overlap.contamination import Wanted
from evals.tasks import TASKS, baseline_text, vsp
from evals.tasks.baseline_text import Labelled
from evals.tasks.open_answers import TaskItem, TaskItems, as_questions, read_answers, read_task, score
from ghost_jax.core.atomic_io import write_text
from ghost_jax.core.errors import UserError
from ghost_jax.runs.evaluation import TaskEvaluation, read
from tests.bench.serving import serving
from tests.conftest import ROOT
from tests.test_endpoint import Model
from tests.test_teacher import completion

HIGH, LOW = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", "CVSS:3.1/AV:P/AC:H/PR:H/UI:R/S:U/C:N/I:N/A:L"  # 9.8, 1.6
SQL = "SQL injection in the login form of shop {} lets attackers read the database."
XSS = "Cross-site scripting in the guest book of forum {} lets attackers run scripts."
GOLDS = {  # twelve descriptions a task
    "rcm": [("CWE-89", SQL), ("CWE-79", XSS)] * 6,
    "vsp": [(HIGH, SQL), (LOW, XSS)] * 6,
    "ate": [("T1055", "It overwrites a pointer in the window memory of {}.")] * 2,
}


def tsv(golds: list[tuple[str, str]], platform: str = "") -> str:
    rows = [
        f"https://x.org/CVE-2024-{1000 + row}\t{platform}\t{text.format(f'number {row}')}\tRate {row % 6}.\t{gold}\r\n"
        for row, (gold, text) in enumerate(golds)
    ]
    return "URL\tPlatform\tDescription\tPrompt\tGT\r\n" + "".join(rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder: every task's file, a corpus of vulnerabilities with test items in it, and a small ATT&CK."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("rcm", "rcm-2021", "vsp", "ate", "taa"):
        write_text(folder / "ctibench" / f"cti-{name}.tsv", tsv(GOLDS.get(name, []), "Enterprise"))
    question = "https://x.org/page\t\tWhat is CVE-2019-7777?\tPrompt\tA\n"
    write_text(folder / "ctibench" / "cti-mcq.tsv", tsv([]) + question)
    records = [(f"CVE-2020-{2000 + row}", "CWE-89", HIGH, SQL.format(f"of town {row}")) for row in range(8)]
    records += [(f"CVE-2020-{3000 + row}", "CWE-79", LOW, XSS.format(f"of town {row}")) for row in range(6)]
    records += [("CVE-2019-7777", "CWE-20", HIGH, "Of a question."), ("CVE-2024-1001", "CWE-20", HIGH, "An item.")]
    records += [("CVE-2021-4444", "CWE-20", HIGH, SQL.format("number 0").replace("shop", "SHOP"))]
    lines = [
        {"id": name, "source": "cve", "title": name, "text": f"{name}\nWeakness: {weakness}.\n{text} {vector}"}
        for name, weakness, vector, text in records
    ]
    lines[-2] |= {"id": "cve/CVE-2024-1001", "title": "A title of its own"}  # the test item
    lines.append({"id": "unlabelled", "source": "cve", "title": "CVE-2021-5555", "text": "No label."})
    write_text(folder / "corpus" / "cve.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    (folder / "raw").mkdir()
    attack = (ROOT / "tests" / "samples" / "attack.json").read_text()
    for domain, number in (("enterprise", "T1055"), ("mobile", "T1631"), ("ics", "T0800")):  # of Process Injection
        bundle = attack.replace("enterprise-attack", f"{domain}-attack").replace("T1055", number)
        (folder / "raw" / f"{domain}-attack-15.1.json").write_text(bundle)
    return folder


@pytest.fixture
def scored(data):
    """A function that scores answers to the items of a task, or of another file; None for the baselines alone."""

    def run(name: str, answers: list[str] | None, path=None) -> TaskEvaluation:
        items = read_task(TASKS[name], path, data)
        return score(TASKS[name], items, answers, TASKS[name].baselines(items, data))

    return run


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("rcm", "It is not CWE-20.\nCWE-79: XSS\n\n", "CWE-79"),
        ("rcm", "cwe 0089", "CWE-89"),
        ("rcm", "CWE-79 or CWE-89", ""),
        ("rcm", "79", ""),
        ("vsp", f"First {LOW}, then\n**{HIGH}**.", HIGH),
        ("vsp", HIGH.partition("/")[2].lower(), HIGH),
        ("vsp", HIGH.replace("3.1", "3.0") + "/E:P", HIGH.replace("3.1", "3.0")),
        ("vsp", HIGH.replace("A:H", "A:X"), ""),
        ("vsp", HIGH.replace("/A:H", ""), ""),
        ("ate", "T1001 was considered.\nT1071.001, T1059, t1, T1059.003", "T1059, T1071"),
        ("ate", "T1001: no\n- T1071\n- T1059\n", "T1059, T1071"),
        ("ate", "T1001: no\n1. T1071\n2) t1059.001", "T1059, T1071"),
        ("ate", "none", ""),
    ],
)
def test_an_answer_is_found_in_a_text(task, text, answer):
    assert TASKS[task].parse(text) == answer


def test_no_baseline_learns_from_a_test_item(scored, data):
    text = (report := scored("rcm", None)).baseline_text
    assert (text.records, text.left_out_by_id, text.left_out_by_text) == (14, 2, 1)
    assert [each["file"] for each in text.inputs] == ["cve.jsonl"]
    values = {"best constant": 0.5, "most frequent": 0.5, "nearest neighbour": 1, "linear model": 1}
    assert {name: each.value for name, each in report.baselines.items()} == values
    assert report.headline is None
    items = read_task(TASKS["rcm"], None, data)
    copied = items.items[0].text.upper()
    for held in (Labelled("CVE-2024-1003", "Another text.", "CWE-1"), Labelled("CVE-1999-1", copied, "CWE-1")):
        with pytest.raises(UserError, match=held.id):
            baseline_text.answers([held], items)


@pytest.mark.parametrize(
    ("text", "metrics"),
    [
        ("Unauthenticated SQL injection in /admin/login.php of a shop.", "AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"),
        ("Stored XSS in a plugin by users such as admin.", "AV:N/AC:L/PR:H/UI:R/S:C/C:L/I:L/A:N"),
        ("In the Linux kernel a NULL pointer is used after a race condition.", "AV:L/AC:H/PR:L/UI:N/S:U/C:N/I:N/A:H"),
        ("A crafted PDF file leads to a heap overflow.", "AV:L/AC:L/PR:N/UI:R/S:U/C:H/I:H/A:H"),
        ("CSRF lets attackers change the settings of a logged-in admin.", "AV:N/AC:L/PR:N/UI:R/S:U/C:H/I:H/A:H"),
        ("An authenticated user can read files.", "AV:N/AC:L/PR:L/UI:N/S:U/C:H/I:N/A:N"),
    ],
)
def test_keyword_rules_give_the_vector_of_a_description(text, metrics):
    assert vsp.by_rules(text) == f"CVSS:3.1/{metrics}" == TASKS["vsp"].parse(metrics)


def test_the_search_of_training_data_finds_techniques_in_any_order():
    item = TaskItem("S0001", "A downloader that waits on a host and then talks to its server.", "", "T1059, T1071", "")
    asked = as_questions(TaskItems("ate", "", "", (item,)))
    found = Wanted(asked.items).found_in(f"{item.text} It uses T1071, T1573 and T1059.")
    assert found.stems[item.id]


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        (["CWE-89"] * 12, "collapsed"),
        (["CWE-89", "CWE-20"] * 4 + ["CWE-79"] * 4, "chance"),
        ([""] * 12, "chance"),
        (["CWE-89", "CWE-79"] * 6, "shortcut"),
        (["CWE-89", "CWE-79"] * 4 + ["CWE-89"] * 4, "chance"),  # two thirds are one answer, which is mostly right
    ],
)
def test_the_verdict_on_a_class_of_weakness(scored, answers, verdict):
    report = scored("rcm", answers)
    assert report.verdict == verdict
    assert report.headline.value == pytest.approx(sum(map(str.__eq__, answers, ["CWE-89", "CWE-79"] * 6)) / 12)


def test_better_than_every_baseline_is_a_gain(scored, tmp_path):
    path = tmp_path / "hard.tsv"
    path.write_text(tsv([("CWE-22", SQL), ("CWE-89", XSS), ("CWE-79", SQL)] * 10))
    report = scored("rcm", ["CWE-22", "CWE-89", "CWE-79"] * 10, path)
    assert (report.verdict, report.headline.value, report.items.file) == ("gain", 1, "hard.tsv")
    assert report.baselines["linear model"].gain == 1 - report.baselines["linear model"].value


def test_deviations_count_unparsed_answers_as_the_best_constant(scored):
    report = scored("vsp", [HIGH, "no idea"] * 6)
    constant = report.baselines["best constant"].value
    assert constant == pytest.approx(8.2 / 2)
    assert (report.parsed_only, report.not_parsed) == (pytest.approx(0), 0.5)
    assert report.headline.value in (pytest.approx(0), pytest.approx(8.2 / 2))  # the constant is one of two that tie
    assert report.headline.ci95[0] <= report.headline.value <= report.headline.ci95[1]
    assert scored("vsp", [HIGH, LOW] * 6).baselines["best constant"].gain == pytest.approx(4.1)
    thoughts = [f"<think>{HIGH}?</think> {LOW}", f"<think>{HIGH}"] * 6
    assert scored("vsp", thoughts).predicted == (LOW, "") * 6


def test_sets_of_techniques_have_a_macro_and_a_micro_f1(scored, tmp_path):
    report = scored("ate", ["T1055, T1071.001, T1059", "T1055.011"])
    assert report.headline.value == pytest.approx((2 / 4 + 1) / 2)
    assert report.headline.micro == pytest.approx(2 * 2 / (4 + 2))
    assert report.baselines["nearest lines"].value == 1
    assert report.baselines["look-up"].value == 0
    path = tmp_path / "named.tsv"
    path.write_text(tsv([("T1055", "It uses process injection in {}.")], "Enterprise"))
    assert scored("ate", None, path).baselines["technique names"].value == 1
    path = tmp_path / "own.tsv"  # no other page is left where the one software is asked
    path.write_text(tsv(GOLDS["ate"], "Enterprise").replace("CVE-2024-1000", "S0091"))
    with pytest.raises(UserError, match="Enterprise"):
        scored("ate", None, path)


@pytest.mark.parametrize(
    ("suffix", "sheet"),
    [
        (".csv", "id,GT,model\nCVE-2024-1001,T1055,T2\nCVE-2024-1000,T1055,T1059\n"),
        (".jsonl", '{"id": "CVE-2024-1001", "model": ["T2"]}\n{"id": "CVE-2024-1000", "model": ["T1059"]}\n'),
    ],
)
def test_a_sheet_is_matched_by_id(data, tmp_path, suffix, sheet):
    path = tmp_path / f"sheet{suffix}"
    path.write_text(sheet)
    answers, file = read_answers(TASKS["ate"], read_task(TASKS["ate"], None, data), path, None)
    assert (answers, file.name) == (["T1059", "T2"], "model")


@pytest.mark.parametrize(
    ("sheet", "column", "named"),
    [
        ("m,n\nT1055,T1\nT1055,T1\n", None, "--column"),
        ("m\nT1055\nT1055\n", "k", '"k"'),
        ("m,GT\nT1055,T1055\nT1055,T1059\n", None, "CVE-2024-1001"),
    ],
)
def test_a_sheet_that_is_not_of_the_items_is_refused(data, tmp_path, sheet, column, named):
    path = tmp_path / "sheet.csv"
    path.write_text(sheet)
    with pytest.raises(UserError, match=r"sheet\.csv") as refused:
        read_answers(TASKS["ate"], read_task(TASKS["ate"], None, data), path, column)
    assert named in str(refused.value)


def test_the_command_writes_its_report_and_refuses_what_cannot_be_scored(ghost, data, tmp_path):
    out, sheet = tmp_path / "vsp.json", tmp_path / "sheet.tsv"
    sheet.write_text("model\n" + f"{HIGH}\n{LOW}\n" * 6)
    flags = ["evals.ctibench", f"--data_dir={data}", f"--out={out}"]
    ghost.here(*flags, "--task=vsp", f"--predictions={sheet}", "--column=model")
    assert (read(out, TaskEvaluation).headline.value, read(out, TaskEvaluation).n) == (0, 12)
    place = tmp_path / "run" / "evals" / "cti-rcm.json"
    place.parent.mkdir(parents=True)
    out.rename(place)
    scored = ("evals.ctibench", f"--data_dir={data}", "--task=rcm", f"--workdir={tmp_path / 'run'}")
    assert "other items" in ghost.refused_here(*scored)
    assert "gold" in ghost.refused_here(*flags, "--task=taa", code=2)
    for word in ("--workdir=runs/x", "--endpoint=http://localhost:1/v1", "--split=dev"):
        message = ghost.refused_here(*flags, "--task=rcm", word, "--predictions=x", code=2)
        assert word.partition("=")[0] in message
    part = shutil.copytree(data, tmp_path / "part")
    (part / "ctibench" / "cti-taa.tsv").unlink()  # its items could be in the text of the baselines
    words = ("evals.ctibench", f"--data_dir={part}", f"--out={out}", "--task=rcm")
    assert "cti-taa.tsv" in ghost.refused_here(*words)
    assert "absent.csv" in ghost.refused_here(*words, "--predictions=absent.csv")  # before the baselines are fitted
    assert not out.exists()


def test_an_endpoint_writes_the_answers_with_the_limit_that_it_wants(ghost, data, tmp_path):
    def answer(body: dict, _: int):
        if "max_tokens" in body:
            return 400, {}, b'{"error": {"message": "Use max_completion_tokens instead."}}'
        number = int(body["messages"][0]["content"].split()[1].strip("."))
        return completion(f"Because.\n{(HIGH, LOW)[number % 2]}")

    server, out = Model(answer), tmp_path / "vsp.json"
    flags = [f"--data_dir={data}", "--task=vsp", f"--endpoint={server.url}", "--model=m:1", f"--out={out}"]
    ghost.here("evals.ctibench", *flags, env={"NO_PROXY": "127.0.0.1"})
    report = read(out, TaskEvaluation)
    assert (report.headline.value, report.endpoint.requests, report.endpoint.max_tokens) == (0, 6, 1024)
    assert {body.get("max_completion_tokens") for _, body in server.seen if "max_tokens" not in body} == {1024}
    assert not any("logprobs" in body for _, body in server.seen)


def test_a_run_writes_the_answers_unless_it_was_trained_on_an_item(ghost, tiny_run, data, tmp_path):
    out, flags = tmp_path / "rcm.json", [f"--data_dir={data}", "--task=rcm", f"--workdir={tiny_run.workdir}"]
    ghost.here("evals.ctibench", *flags, f"--out={out}", "--max_tokens=4")
    report, task = read(out, TaskEvaluation), TASKS["rcm"]
    assert (report.verdict, report.step, report.prompts_cropped) == ("chance", 8, 0)
    assert report.contamination.counts["contaminated"] == 0
    sheet = out.with_suffix(".answers.jsonl")
    assert len(read_answers(task, read_task(task, None, data), sheet, None)[0]) == 12
    corpus = json.loads((tiny_run.base / "data.json").read_text())["corpus"]
    documents = (ghost.cache / "ghost_jax" / "stores" / corpus / "documents.jsonl").read_text().splitlines()
    page = next(each for each in map(json.loads, documents) if each["id"].startswith("cwe/"))
    known = tmp_path / "known.tsv"
    known.write_text(tsv([(page["id"].removeprefix("cwe/"), " ".join(page["text"].split()[:30]))]))
    assert f"record {page['id']}" in ghost.refused_here("evals.ctibench", *flags, f"--items={known}", f"--out={out}")


@pytest.mark.slow
def test_the_served_export_of_a_run_writes_what_the_run_writes(ghost, tiny_run, data, tmp_path):
    for package in ("torch", "transformers", "fastapi", "uvicorn", "accelerate"):
        pytest.importorskip(package, reason=f"{package} is not installed: no export is served by transformers")
    exported, flags = tmp_path / "export", [f"--data_dir={data}", "--task=rcm", "--max_tokens=8"]
    ghost.here("ghost_jax.export", f"--workdir={tiny_run.workdir}", f"--out={exported}")
    ghost.here("evals.ctibench", *flags, f"--workdir={tiny_run.workdir}", f"--out={tmp_path / 'run.json'}")
    with serving("transformers", tmp_path) as (address, model):
        flags += [f"--endpoint={address.removesuffix('/chat/completions')}", f"--model={model}"]
        ghost.here("evals.ctibench", *flags, f"--out={tmp_path / 'served.json'}", env={"NO_PROXY": "127.0.0.1"})
    run, served = (
        [json.loads(line) for line in (tmp_path / f"{name}.answers.jsonl").read_text().splitlines()]
        for name in ("run", "served")
    )
    written = {each["id"]: each["text"] for each in run}
    assert len(served) == 6
    assert {each["question"]: each["reply"] for each in served} == {
        each["question"]: written[each["question"]] for each in served
    }


@pytest.mark.slow
def test_baselines_on_the_published_files(ghost_data):
    for name, baseline, low, high in (("vsp", "best constant", 1.5, 1.6), ("ate", "nearest lines", 0.45, 0.6)):
        items = read_task(TASKS[name], None, ghost_data)
        report = score(TASKS[name], items, None, TASKS[name].baselines(items, ghost_data))
        assert low < report.baselines[baseline].value < high
