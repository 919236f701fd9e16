"""server/: real clients over a socket get their own text, errors of the API's shape, and free what they leave."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random

import jax
import numpy as np
import openai
import pydantic
import pytest
import requests
import uvicorn

from evals.open_book.lexical import LexicalReader
from ghost_jax.data.retrieval.bm25 import Index, Passage
from ghost_jax.inference.sampling import Sampling
from ghost_jax.server import guard
from ghost_jax.server.app import build
from ghost_jax.server.scheduler import Scheduler
from ghost_jax.server.schemas import MOST_READ, CompletionRequest
from ghost_jax.server.served import Model, Served
from ghost_jax.text.chat_format import Message, render_prompt
from tests.conftest import WAIT

LINES = (
    ("Phishing (T1566)", "Mitigation M1017 User Training", "Users can be trained to identify phishing messages."),
    ("Pass the Hash (T1550.002)", "Mitigation M1051 Update Software", "The patch KB2871997 limits pass the hash."),
    ("<script>alert(1)</script>", "Tactic", "Markup <img src=x onerror=alert(1)> of a page stays text."),
)
WORDS = ("what", "phishing", "CVE", "hash", "tactic", "é", "<|ghost_end|>")
CHAT = "/v1/chat/completions"
ASKED = {"role": "user", "content": "What is phishing?"}
OPTIONS = ["Update Software", "User Training"]
BODY = {"model": "tiny", "messages": [ASKED]}


def reader() -> LexicalReader:
    url = "https://attack.mitre.org/x"
    return LexicalReader(Index.build(Passage(str(n), "attack", *line, url) for n, line in enumerate(LINES)))


@contextlib.contextmanager
def running(served: Served, *, key: str = "", seconds: float = 60):
    """Serves on a free port until the end of the block; yields the address."""
    app = build(served, key=key, seconds=seconds, hosts=("127.0.0.1",))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        assert server.started
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def loaded(tiny_run, **size) -> Model:
    return Model.load(tiny_run.workdir, **{"rows": 4, "waiting": 64, "most": 12} | size)


@pytest.fixture(scope="module")
def model(tiny_run):
    return loaded(tiny_run)


@pytest.fixture(scope="module")
def address(model):
    with running(Served("tiny", model, reader(), note="Untrained.")) as found:
        yield found


def client(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def post(address: str, body: dict | bytes, path: str = CHAT, kind: str = "application/json", **how):
    data = body if isinstance(body, bytes) else json.dumps(body)
    return requests.post(address + path, data=data, headers={"Content-Type": kind}, timeout=60, **how)


def error_of(answer: requests.Response) -> dict:
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    return error


def value_of(address: str, name: str) -> float:
    return float(re.search(rf"^{name} (\S+)$", requests.get(f"{address}/metrics", timeout=60).text, re.MULTILINE)[1])


def test_every_client_gets_its_own_text_as_if_it_were_alone(model):
    engine, rng, expected, asked = model.scheduler.engine, Random(0), [], []
    served = dataclasses.replace(model, scheduler=Scheduler(engine, 64))
    for seed in range(12):
        question, temperature = " ".join(rng.choices(WORDS, k=seed + 1)), rng.choice((0.0, 1.3))
        prompt = render_prompt(model.tokenizer, [Message("user", question)])
        ids = engine.stream(prompt, Sampling(temperature), jax.random.key(seed))
        expected.append(model.tokenizer.decode(list(itertools.islice(ids, model.most))))
        asked.append({"messages": [ASKED | {"content": question}], "temperature": temperature, "seed": seed})

    with running(Served("tiny", served, None)) as address:

        def ask(options: dict) -> str:
            create = client(address).chat.completions.create
            if options["seed"] % 2:
                return create(model="tiny", **options).choices[0].message.content
            chunks = create(model="tiny", **options, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(ask, asked)) == expected
        assert value_of(address, "ghost_requests_running") == 0


def test_answers_cite_the_lines_that_were_read_and_count_tokens(address):
    about = client(address).models.list().data[0]
    assert (about.id, about.note) == ("tiny", "Untrained.")
    create, options = client(address).chat.completions.create, BODY | {"max_tokens": 3}
    before = value_of(address, "ghost_generated_tokens_total")
    whole = create(**options)
    assert value_of(address, "ghost_generated_tokens_total") - before == whole.usage.completion_tokens
    assert whole.choices[0].message.citations[0]["title"] == "Phishing (T1566)"
    assert whole.usage.completion_tokens <= 3
    for message in (whole.choices[0].message, whole.choices[0].message.model_dump()):  # the latter has nulls
        assert create(**options | {"messages": [ASKED, message, ASKED], "temperature": None}).choices
    *_, last, counts = create(**options, stream=True, stream_options={"include_usage": True})
    assert counts.usage == whole.usage
    assert last.choices[0].delta.citations == whole.choices[0].message.citations
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason


def test_completions_have_the_log_probabilities_of_their_tokens(address, model):
    text = "The actor sent a phishing mail"
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
    options = {"model": "tiny", "max_tokens": 1, "logprobs": 2, "temperature": 0}
    create = client(address).completions.create
    by_ids = create(prompt=[ids, ids[:3]], echo=True, **options).choices
    by_text = create(prompt=text, echo=True, **options).choices[0]
    scores = model.scheduler.engine.score(np.array(ids, np.int32))
    first, second = by_ids[0].logprobs, by_text.logprobs
    assert by_ids[1].logprobs.token_logprobs[:3] == pytest.approx(first.token_logprobs[:3], abs=1e-4)
    assert first.token_logprobs[0] is None
    assert first.token_logprobs[1:] == pytest.approx([*scores.log_probs, scores.top_log_probs[-1][0]], abs=1e-4)
    assert second.token_logprobs == pytest.approx(first.token_logprobs[1:], abs=1e-4)
    assert by_text.text.startswith(text)
    assert all(max(top.values()) >= own for top, own in zip(second.top_logprobs, second.token_logprobs, strict=True))
    more = create(prompt=text, **options | {"max_tokens": 4}).choices[0]
    assert create(model="tiny", prompt=text, max_tokens=0).choices[0].text == ""
    for prompt in (ids, [ids]):
        chunks = create(model="tiny", prompt=prompt, max_tokens=4, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == more.text
    stopped = create(model="tiny", prompt=text, max_tokens=8, stop=[more.text[:1]])
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")
    assert create(model="tiny", prompt=text, max_tokens=8, stop=[more.text[:1]], echo=True).usage == stopped.usage


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"model": "other"}, "model"),
        ({"model": "\ud800"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [ASKED] * 10_000}, "messages"),
        ({"messages": [ASKED | {"role": "tool"}]}, "messages.0.role"),
        ({"messages": [ASKED, {"role": "assistant", "content": "x"}]}, None),
        ({"messages": [ASKED | {"content": "long " * 9_000}]}, None),
        ({"tools": []}, "tools"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": float("nan")}, "temperature"),
        ({"n": 2}, "n"),
        ({"stop": ["x"] * 100}, "stop"),
    ],
)
def test_a_bad_request_is_refused_by_its_field(address, wrong, param):
    answer = post(address, BODY | wrong)
    assert answer.status_code in (400, 404)
    assert error_of(answer)["param"] == param


def test_bodies_paths_and_hosts_that_are_not_served_are_refused(address):
    for body, status in ((b"{", 400), (b'{"model": "\xff"}', 400), (b"x" * (guard.MOST_BYTES + 1), 413), (b"", 400)):
        answer = post(address, body)
        assert answer.status_code == status
        error_of(answer)
    assert post(address, BODY, kind="text/plain").status_code == 415
    assert post(address, {"prompt": "x", "add_special_tokens": True}, "/tokenize").status_code == 400
    assert error_of(requests.get(f"{address}/nowhere", timeout=60))
    assert error_of(requests.get(f"{address}/health", headers={"Host": "evil.example"}, timeout=60))


@pytest.mark.parametrize("prompt", [["x", 1] * 1000, [["x"]] * 1000, [[1] * 1000 + ["x"] * 1000]])
def test_a_long_list_of_a_wrong_type_has_few_errors(prompt):
    with pytest.raises(pydantic.ValidationError) as error:
        CompletionRequest(model="tiny", prompt=prompt)
    assert error.value.error_count() < 10


def test_slow_clients_hold_no_row(address, monkeypatch):
    monkeypatch.setattr(guard, "READ_SECONDS", 0.5)
    host, port = address.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(20)]
        for connection in slow:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            connection.sendall(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert post(address, BODY | {"max_tokens": 1}).ok
        assert b"408" in slow[0].recv(1000)


def test_a_full_queue_is_refused_and_a_client_that_leaves_frees_its_row(tiny_run, monkeypatch):
    served = Served("tiny", loaded(tiny_run, rows=1, waiting=1, most=10_000), None)
    engine = served.model.scheduler.engine
    engine._is_stop[:] = False  # the first text fills the context, and takes a minute
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(1), step()))
    with running(served) as address:
        first = post(address, BODY | {"stream": True}, stream=True)
        lines = first.iter_lines()  # kept, since its end closes the connection
        next(lines)
        with pytest.raises(requests.ReadTimeout):
            requests.post(address + CHAT, json=BODY, timeout=1)
        while value_of(address, "ghost_requests_waiting"):
            time.sleep(0.01)
        waiting = threading.Thread(target=post, args=(address, BODY | {"max_tokens": 1}))
        waiting.start()
        while value_of(address, "ghost_requests_waiting") < 1:
            time.sleep(0.01)
        refused = post(address, BODY)
        assert (refused.status_code, error_of(refused)["type"]) == (429, "rate_limit_error")
        assert refused.headers["Retry-After"]
        first.close()
        waiting.join(30)
        assert not waiting.is_alive()
        assert value_of(address, "ghost_requests_running") == 0


def test_a_request_that_takes_too_long_ends_and_a_key_is_asked_for(tiny_run):
    served = Served("tiny", loaded(tiny_run), None)
    paths = {each.path: each.methods for each in build(served, key="", seconds=1, hosts=()).routes} | {"/x": {"GET"}}
    with running(served, key="secret", seconds=1e-6) as address:
        for path, methods in paths.items():
            for given in ({}, {"Authorization": "Bearer wrong"}):
                asked = {"headers": given | {"Content-Type": "application/json"}, "timeout": 60}
                answers = [requests.request(method, address + path, **asked) for method in methods]
                assert {answer.status_code == 401 for answer in answers} == {path not in ("/", "/health")}, path
        known = client(address, "secret")
        assert known.models.list().data
        scored = {"model": "tiny", "prompt": ["x"], "max_tokens": 1, "logprobs": 1}
        for create, body in ((known.chat.completions.create, BODY), (known.completions.create, scored)):
            with pytest.raises(openai.APIStatusError) as error:
                create(**body)
            assert error.value.status_code == 504


def test_the_reader_alone_answers_with_its_lines():
    with running(Served("reader", None, reader())) as address:
        asked = {"question": "Which mitigation addresses pass the hash?", "options": OPTIONS}
        found = post(address, asked, "/v1/read").json()
        assert (found["answer"], found["lines"]) == ("A", found["options"][0]["lines"])
        assert "KB2871997" in found["lines"][0]["text"]
        other = post(address, asked | {"question": "Which does NOT address pass the hash?"}, "/v1/read").json()
        assert (other["answer"], other["negated"], other["lines"][:1]) == ("B", True, found["lines"][:1])
        assert post(address, {"question": "Is NOT?", "options": [OPTIONS[0], ""]}, "/v1/read").json()["lines"] == []
        chat = client(address).chat.completions
        content = f"Question: Which mitigation addresses phishing?\n(See A.)\nA) {OPTIONS[0]}\nB: {OPTIONS[1]}\nAnswer:"
        message = chat.create(model="reader", messages=[ASKED | {"content": content}]).choices[0].message
        assert (message.content, message.citations[0]["title"]) == ("B) User Training", "Phishing (T1566)")
        chunks = chat.create(model="reader", messages=[ASKED], stream=True)
        assert "trained" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert error_of(post(address, {"model": "reader", "prompt": "x"}, "/v1/completions"))
        assert post(address, {"question": "x " * MOST_READ}, "/v1/read").status_code == 400


def test_the_reader_answers_for_a_model_that_only_guesses(model):
    guessing = dataclasses.replace(model, scheduler=Scheduler(model.scheduler.engine, 1))
    with running(Served("tiny", guessing, reader(), note="It guesses.", quotes=True)) as address:
        answer = client(address).chat.completions.create(**BODY)
    assert "User Training" in answer.choices[0].message.content
    assert answer.ghost_jax["note"] == "It guesses."


def test_a_failure_is_counted_and_an_engine_that_has_ended_fails_the_health_check(model, monkeypatch):
    monkeypatch.setattr(Model, "chat", lambda *_: 1 / 0)
    alone = dataclasses.replace(model, scheduler=Scheduler(model.scheduler.engine, 1))
    with running(Served("tiny", alone, None)) as address:
        assert post(address, BODY).status_code == 500
        assert value_of(address, rf'ghost_requests_total{{path="{CHAT}",status="500"}}'.replace("{", r"\{")) >= 1
        assert requests.get(f"{address}/health", timeout=60).ok
        alone.scheduler.stop()
        assert requests.get(f"{address}/health", timeout=60).status_code == 503


def test_a_stream_that_fails_ends_with_the_error(address, model, monkeypatch):
    monkeypatch.setattr(model.scheduler.engine, "step", lambda: 1 / 0)
    with pytest.raises(openai.APIError, match="its log has the cause"):
        list(client(address).chat.completions.create(**BODY, stream=True))


def test_a_stream_has_no_line_end_that_some_clients_alone_know(address, monkeypatch):
    monkeypatch.setattr(Served, "lines", lambda *_: [Passage("1", "attack", "a\u2028data: [DONE]", "", "\x85", "")])
    assert post(address, BODY | {"max_tokens": 1, "stream": True}).content.isascii()


def test_lines_that_the_context_does_not_hold_are_not_cited(address, model, monkeypatch):
    found = [Passage(str(n), "attack", "Phishing", "", "word " * 50, "") for n in range(20)]
    monkeypatch.setattr(Served, "lines", lambda *_: found)
    short, long = (client(address).chat.completions.create(**BODY, max_tokens=n) for n in (1, model.context // 2))
    assert 20 - short.ghost_jax["lines_dropped"] == len(short.choices[0].message.citations)
    assert short.ghost_jax["lines_dropped"] < long.ghost_jax["lines_dropped"]


def test_the_page_runs_its_own_script_alone(address):
    answer = requests.get(address, timeout=60)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"""(src|href)=["']?https?:""", answer.text)


@pytest.mark.slow
def test_lm_eval_scores_over_the_socket(address, model, tmp_path):
    texts = ["The actor sent a phishing mail", "A tactic of ATT&CK is a goal."]
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = {"task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    task |= {"test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_target": 0}
    task |= {"doc_to_choice": ["initial access", "impact"], "metric_list": [{"metric": "acc"}]}
    (tmp_path / "own.yaml").write_text(json.dumps(task))
    args = f"model=tiny,base_url={address}/v1/completions,max_length={model.context},num_concurrent=2"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", args]
    command += ["--tasks", "own", "--include_path", tmp_path, "--output_path", tmp_path / "out", "--log_samples"]
    environment = os.environ | {"OPENAI_API_KEY": "none", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=WAIT)
    (samples,) = (tmp_path / "out").rglob("samples_own_*.jsonl")
    for text, line in zip(texts, samples.read_text().splitlines(), strict=True):
        for option, ((found, _),) in zip(task["doc_to_choice"], json.loads(line)["resps"], strict=True):
            before, whole = (model.ids(each) for each in (text, f"{text} {option}"))
            expected = model.scheduler.engine.score(whole).log_probs[len(before) - 1 :].sum()
            assert float(found) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_the_page_asks_and_shows_lines_as_text_in_a_real_browser(address):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not shutil.which("chromedriver"):
        pytest.skip("there is no chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--window-size=390,844"):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.implicitly_wait(60)
        browser.get(address)
        find = functools.partial(browser.find_element, "css selector")
        assert find("#note:not([hidden])").text == "Untrained."
        find("#question").send_keys("What markup of a page stays text?\n")
        assert find("#lines mark")
        assert "<img src=x onerror=alert(1)>" in find("#lines").text
        assert not browser.execute_script("return document.querySelector('#lines img, #lines script')")
        assert find("#lines a").get_attribute("href") == "https://attack.mitre.org/x"
        find("#tab-options:not([hidden])").click()
        find("#asked").send_keys("Which mitigation addresses pass the hash?")
        find("#option-A").send_keys("Update Software")
        find("#option-B").send_keys("User Training\n")
        assert find("#found .chosen strong").text == "A) Update Software"
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.get_log("browser") == []
