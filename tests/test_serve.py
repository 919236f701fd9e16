"""`python -m ghost_jax.serve`: what it refuses, whom it answers, and how it ends."""

import re
import signal

import pytest
import requests

from tests.test_server import BODY, client


def test_nothing_to_serve_or_a_host_for_all_without_a_key_is_bad_usage(ghost):
    public, endless = ("GHOST_API_KEY", "--book=open", "--host=0.0.0.0"), ("--timeout", "--book=open", "--timeout=inf")
    for named, *flags in (("--workdir",), public, endless):
        assert named in ghost.refused_here("ghost_jax.serve", *flags, code=2)


@pytest.mark.parametrize("key", ["", "secret"])
def test_the_command_serves_a_book_under_other_names_with_a_key_alone_until_sigterm(ghost, tmp_path, key):
    (tmp_path / "notes.md").write_text("# Kite\n\nThe kite implant hides its beacon in the printer spooler of a host.")
    process = ghost.start("ghost_jax.serve", f"--book={tmp_path}", "--port=0", env={"GHOST_API_KEY": key})
    address = next(found[1] for line in process.stdout if (found := re.search(r"(http://\S+)\.", line)))
    asked = {"question": "Where does kite hide its beacon?", "options": ["spooler", "mail"]}
    known = {"Authorization": f"Bearer {key}"}
    assert requests.post(f"{address}/v1/read", json=asked, headers=known, timeout=60).json()["answer"] == "A"
    elsewhere = requests.get(address, headers={"Host": "proxy.example"}, timeout=60)
    assert elsewhere.status_code == (200 if key else 400)
    process.send_signal(signal.SIGTERM)
    assert ghost.finish(process).returncode == 0


@pytest.mark.slow
def test_sigterm_finishes_the_stream_that_runs_and_ends_with_zero(ghost, tiny_run):
    flags = (f"--workdir={tiny_run.workdir}", "--port=0", "--max_new_tokens=60")
    process = ghost.start("ghost_jax.serve", *flags, env={"GHOST_API_KEY": "secret"})
    address = next(found[1] for line in process.stdout if (found := re.search(r"(http://\S+)\.", line)))
    options = BODY | {"model": tiny_run.workdir.name, "temperature": 1.0, "seed": 3}
    create = client(address, "secret").chat.completions.create
    whole = create(**options).choices[0].message.content
    chunks = create(**options, stream=True)
    text = next(chunks).choices[0].delta.content or ""
    process.send_signal(signal.SIGTERM)
    text += "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole
    assert ghost.finish(process).returncode == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{address}/health", timeout=5)
