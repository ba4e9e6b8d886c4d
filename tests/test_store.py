import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unlearnlab import leases
from unlearnlab import store as module
from unlearnlab.spec import InputError
from unlearnlab.store import Store, write_text_atomic


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, said) -> Store:
    return Store(tmp_path / "store", say=said.append, lease=60)


def write(folder: Path) -> dict[str, int]:
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "sub").mkdir()
    (folder / "sub" / "log.jsonl").write_text('{"step": 1}\n')
    return {"steps": 3}


def fill(text: str):
    return lambda folder: (folder / "payload").write_text(text) and None


def names(store: Store) -> list[str]:
    """Every file and folder, but for the store's own."""
    return sorted(path.relative_to(store.root).as_posix() for path in store.root.rglob("*"))


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    program = "import os, sys, time\nfrom pathlib import Path\nfrom unlearnlab.store import Store\n" + program
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


# -- making and reading ----------------------------------------------------------------------------


def test_made_once_and_recorded(store):
    folder = store.make("stacks", "k1", write, manifest={"spec": {"name": "sgd"}, "seeds": (1, 2), "data": "d0"})
    assert folder == store.root / "stacks" / "k1" == store.get("stacks", "k1")
    assert store.make("stacks", "k1", pytest.fail, manifest={}) == folder
    body = store.manifest("stacks", "k1")
    assert {name: body[name] for name in ("kind", "key", "spec", "seeds", "data", "steps")} == {
        "kind": "stacks", "key": "k1", "spec": {"name": "sgd"}, "seeds": [1, 2], "data": "d0", "steps": 3,
    }  # fmt: skip
    assert set(body["versions"]) == {"python", "torch", "unlearnlab"}
    assert body["peak_memory"] > 1e6
    assert body["seconds"] >= 0
    assert {name: fact["size"] for name, fact in body["files"].items()} == {"weights.bin": 10240, "sub/log.jsonl": 12}
    assert names(store) == ["stacks", "stacks/k1", *(f"stacks/k1/{name}" for name in ("manifest.json", "sub", "sub/log.jsonl", "weights.bin"))]
    assert store.get("outputs", "k1") is None


def test_a_writer_that_raises_leaves_nothing(store):
    def broken(folder: Path) -> None:
        write(folder)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        store.make("stacks", "k1", broken, manifest={})
    assert names(store) == ["stacks"]
    assert store.make("stacks", "k1", write, manifest={})


def test_a_manifest_that_is_no_plain_data_fails_before_the_work(store):
    with pytest.raises(TypeError):
        store.make("stacks", "k1", pytest.fail, manifest={"spec": object()})


KILLED = """
def write(folder):
    (folder / "weights.bin").write_bytes(b"half")
    Store(sys.argv[1]).save_partial("stacks", "k1", "state", lambda path: path.write_text("step 7"))
    print("writing", flush=True)
    time.sleep(60)
Store(sys.argv[1]).make("stacks", "k1", write, manifest={})
"""


def test_kill_in_the_middle_of_a_write(store):
    process = run(KILLED, store.root)
    assert process.stdout.readline() == "writing\n"
    process.kill()  # not reaped: a zombie counts as dead
    assert store.get("stacks", "k1") is None
    assert store.list() == []
    started = time.monotonic()
    assert (store.partial("stacks", "k1") / "state").read_text() == "step 7", "the resumable state outlives the kill"
    assert store.make("stacks", "k1", write, manifest={})
    assert time.monotonic() - started < 10, "a dead process holds no lock"
    assert not (store.root / "stacks" / "k1.partial").exists()
    assert store.tidy({("stacks", "k1")}) == (1, 4), "half of the dead one's payload"
    assert os.listdir(store.root / "stacks") == ["k1"]
    process.communicate()


def test_partial_files_are_replaced_at_a_stroke(store):
    def broken(path: Path) -> None:
        path.write_text("half")
        raise KeyError("mine")

    store.save_partial("stacks", "k1", "state.npz", lambda path: path.write_text("old"))
    with pytest.raises(KeyError, match="mine"):
        store.save_partial("stacks", "k1", "state.npz", broken)
    assert [(path.name, path.read_text()) for path in store.partial("stacks", "k1").iterdir()] == [("state.npz", "old")]
    seen: list[Path] = []
    store.save_partial("stacks", "k1", "state.npz", lambda path: seen.append(path) or path.write_text("new"))
    assert seen[0].suffix == ".npz", "numpy would add it"
    assert (store.partial("stacks", "k1") / "state.npz").read_text() == "new"


def test_studies_hold_files_for_people(store):
    folder = store.study("digits-v1.2")
    write_text_atomic(folder / "study.toml", "é")
    write_text_atomic(folder / "study.toml", "ü")
    assert {path.name: path.read_text("utf-8") for path in folder.iterdir()} == {"study.toml": "ü"}
    for name in ("", "../x", "a/b", ".hidden"):
        with pytest.raises(InputError, match="name"):
            store.study(name)


# -- damage ----------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def swap_digits(path: Path) -> None:
    path.write_text(path.read_text().replace('"steps": 3', '"steps": 4'))


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize(
    ("harm", "name"),
    [
        *((harm, name) for harm in (flip, truncate, Path.unlink) for name in ("weights.bin", "sub/log.jsonl", "manifest.json")),
        (swap_digits, "manifest.json"),
        (lambda path: path.write_text("garbage"), "manifest.json"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "manifest.json"),
        (lambda path: path.write_text("{}"), "manifest.json"),
        (lambda path: path.write_text("[]"), "manifest.json"),
    ],
)
def test_damage_is_noticed_named_and_mended(store, said, monkeypatch, harm, name, read_before):
    folder = store.make("stacks", "k1", write, manifest={"spec": 1})
    if not read_before:
        monkeypatch.setattr(module, "_verified", set())  # as a new process
    harm(folder / name)
    if name == "manifest.json" and harm is truncate:
        assert store.get("stacks", "k1") == folder, "the newline at its end means nothing"
        return
    assert store.get("stacks", "k1") is None
    assert len(said) == 1
    assert "stacks/k1 is damaged" in said[0]
    assert name in said[0]
    assert (store.root / "damaged" / "stacks-k1-1").is_dir()
    assert store.make("stacks", "k1", write, manifest={"spec": 1}) == folder
    assert (folder / "weights.bin").read_bytes() == bytes(range(256)) * 40
    flip(folder / "weights.bin")
    assert store.get("stacks", "k1") is None
    assert sorted(os.listdir(store.root / "damaged")) == ["stacks-k1-1", "stacks-k1-2"]


def test_checksums_are_computed_once_per_process(store, monkeypatch):
    store.make("stacks", "k1", write, manifest={})
    computed: list[str] = []
    checksum = module._checksum
    monkeypatch.setattr(module, "_checksum", lambda path: computed.append(path.name) or checksum(path))
    assert store.get("stacks", "k1")
    assert Store(store.root).get("stacks", "k1")
    assert computed == []
    monkeypatch.setattr(module, "_verified", set())
    assert store.get("stacks", "k1")
    assert sorted(computed) == ["log.jsonl", "weights.bin"]


def test_other_errors_do_not_condemn_an_artefact(store, monkeypatch):
    store.make("stacks", "k1", write, manifest={})

    def busy(_: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, "_verified", set())
    monkeypatch.setattr(module, "_checksum", busy)
    with pytest.raises(OSError, match="Too many"):
        store.get("stacks", "k1")
    assert not (store.root / "damaged").exists()


# -- many processes --------------------------------------------------------------------------------

RACER = """
def write(folder):
    print("wrote", flush=True)
    (folder / "payload").write_text("same")
store = Store(sys.argv[1])
while time.time() < float(sys.argv[2]): pass
for key in range(20):
    folder = store.make("stacks", str(key), write, manifest={"spec": key})
    assert (folder / "payload").read_text() == "same"
"""


def test_racing_processes_make_each_thing_once(store, said):
    processes = [run(RACER, store.root, time.time() + 0.5) for _ in range(4)]
    written = [process.communicate(timeout=20)[0].count("wrote") for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum(written) == 20
    assert sorted(os.listdir(store.root / "stacks"), key=int) == [str(key) for key in range(20)]
    assert all(store.get("stacks", str(key)) for key in range(20))
    assert not said


def test_racing_threads_make_a_thing_once(store):
    written: list[int] = []

    def slow(folder: Path) -> None:
        written.append(1)
        time.sleep(0.1)
        (folder / "payload").write_text("same")

    threads = [threading.Thread(target=store.make, args=("stacks", "k1", slow), kwargs={"manifest": {}}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [1]
    assert store.get("stacks", "k1")


def lock(store: Store, *, host: str = "elsewhere", age: float = 0, pid: int = 1, body: str | None = None) -> Path:
    path = store.root / "stacks" / "k1.lock"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": host, "pid": pid, "token": "theirs"}) if body is None else body)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize("body", [None, "", "[]", '{"token": 1}'])
def test_a_silent_lock_is_taken_over(store, body):
    path = lock(store, age=61, body=body)
    assert store.make("stacks", "k1", write, manifest={})
    assert not path.exists()
    assert os.listdir(store.root / "stacks") == ["k1"]


@pytest.mark.parametrize("body", [None, ""])
def test_a_fresh_lock_is_waited_for(store, body):
    path = lock(store, age=50, body=body)
    threading.Timer(0.3, path.unlink).start()
    started = time.monotonic()
    assert store.make("stacks", "k1", write, manifest={})
    assert time.monotonic() - started >= 0.3


def test_many_take_over_one_stale_lock_and_one_gets_it(tmp_path):
    """The race that a plain unlink-and-create loses: a second taker removes the first one's new lock."""
    store = Store(tmp_path / "store", lease=60)
    for round_ in range(60):
        path, held, most = lock(store, age=61, body=None if round_ % 2 else ""), [], []
        barrier = threading.Barrier(4)

        def take(path=path, held=held, most=most, barrier=barrier) -> None:
            barrier.wait()
            with leases.claim(path, 60) as ours:
                if ours:
                    held.append(1)
                    most.append(len(held))
                    time.sleep(0.002)
                    held.pop()

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(most) == {1}
        assert os.listdir(path.parent) == []


def test_displacing_spares_the_lock_of_another(store):
    path = lock(store)
    leases._displace(path, ({"token": "not theirs"}, path.stat().st_mtime), 60)
    leases._displace(path, ({**json.loads(path.read_text())}, path.stat().st_mtime - 1), 60)  # it has moved since
    assert json.loads(path.read_text())["token"] == "theirs"
    assert os.listdir(path.parent) == ["k1.lock"]


def test_a_living_lease_is_kept_up_and_a_lost_one_is_not(tmp_path):
    path = tmp_path / "k1.lock"
    with leases.claim(path, 1) as ours:
        assert ours
        for _ in range(6):
            time.sleep(0.25)
            with leases.claim(path, 1) as theirs:
                assert not theirs
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs"}))  # as if taken over
        os.utime(path, (0, 0))
        time.sleep(0.4)
        assert path.stat().st_mtime == 0, "another's lock must be left to grow stale"
    assert json.loads(path.read_text())["token"] == "theirs", "nor is it ours to release"


def test_a_stopped_maker_that_lost_its_lease_does_no_harm(store, said):
    """The second maker finishes first and wins; the first finds that and uses it."""
    first = threading.Event()

    def slow(folder: Path) -> None:
        os.utime(store.root / "stacks" / "k1.lock", (0, 0))
        (store.root / "stacks" / "k1.lock").write_text("{}")  # its heartbeat stops
        os.utime(store.root / "stacks" / "k1.lock", (0, 0))
        assert first.wait(5)
        (folder / "payload").write_text("late")

    thread = threading.Thread(target=store.make, args=("stacks", "k1", slow), kwargs={"manifest": {}})
    thread.start()
    while not (store.root / "stacks" / "k1.lock").exists() or (store.root / "stacks" / "k1.lock").stat().st_mtime:
        time.sleep(0.005)
    folder = store.make("stacks", "k1", fill("early"), manifest={})
    first.set()
    thread.join()
    assert (folder / "payload").read_text() == "early"
    assert os.listdir(store.root / "stacks") == ["k1"]
    assert not said


# -- looking, comparing, tidying -------------------------------------------------------------------


def test_list_and_find(store):
    store.make("stacks", "ab12", write, manifest={"spec": {"name": "sgd"}})
    store.make("stacks", "ab34", fill("x"), manifest={"name": "original 0-7"})
    store.make("outputs", "cd56", fill("xyz"), manifest={})
    store.study("digits")
    store.partial("stacks", "ef78")
    assert [(row.kind, row.key, row.name, row.size) for row in store.list()] == [
        ("outputs", "cd56", "", 3), ("stacks", "ab12", "sgd", 10252), ("stacks", "ab34", "original 0-7", 1),
    ]  # fmt: skip
    assert [row.key for row in store.list("stacks")] == ["ab12", "ab34"]
    assert store.list()[0].created.startswith("20")
    assert store.find("ab1") == ("stacks", "ab12")
    assert store.find("outputs/c") == store.find("cd56") == ("outputs", "cd56")
    with pytest.raises(InputError, match=r"'ab' is ambiguous: stacks/ab12, stacks/ab34; write more"):
        store.find("ab")
    for unknown in ("ef", "stacks/cd", "../x"):
        with pytest.raises(InputError, match="no artefact"):
            store.find(unknown)
    with pytest.raises(InputError, match="no readable manifest"):
        store.manifest("stacks", "nothing")
    flip(store.root / "stacks" / "ab12" / "manifest.json")
    assert store.list("stacks")[0].name == "(unreadable manifest)"


def test_why(store):
    def settings(lr: float) -> dict[str, object]:
        return {"kind": "recipe", "name": "sgd", "settings": {"lr": lr, "momentum": 0.9}}

    for key, lr, seeds in [("a1", 0.1, [0, 1]), ("a2", 0.1, [2, 3]), ("b1", 0.01, [0, 1]), ("b2", 0.01, [2, 3])]:
        store.make("stacks", key, write, manifest={"name": key, "spec": settings(lr), "seeds": seeds})
    for key, stacks in [("oa", ["a1", "a2"]), ("ob", ["b1", "b2"]), ("oc", ["a1"])]:
        store.make("outputs", key, fill("x"), manifest={"spec": {"part": "test"}, "parents": stacks})
    store.make("metrics", "ma", fill("x"), manifest={"spec": {"name": "auc", "at": 0.1}, "inputs": {"seen": "outputs/oa", "flag": None}})
    store.make("metrics", "mb", fill("x"), manifest={"spec": {"name": "auc"}, "inputs": {"seen": "outputs/ob", "flag": True}})
    store.make("metrics", "mc", fill("x"), manifest={"spec": {"name": "auc"}, "inputs": {"seen": "outputs/ob", "flag": True}})
    assert store.why("a1", "b2") == ["spec.settings.lr: 0.1 -> 0.01", "seeds: [0, 1] -> [2, 3]"]
    assert store.why("oa", "ob") == ["parents.0.spec.settings.lr: 0.1 -> 0.01"], "and once is enough"
    assert store.why("oa", "oc") == ['parents: ["a1", "a2"] -> ["a1"]']
    assert store.why("ma", "mb") == ["spec.at: 0.1 -> (absent)", "inputs.seen.parents.0.spec.settings.lr: 0.1 -> 0.01", "inputs.flag: null -> true"]
    assert store.why("a1", "oa")[0] == 'kind: "stacks" -> "outputs"'
    assert store.why("ma", "ma") == []
    assert store.why("mb", "mc") == ['key: "mb" -> "mc"'], "what made the keys differ is not in the manifests"


def test_tidy(store, said):
    for key in ("live", "old", "held", "bad"):
        store.make("stacks", key, fill("12345"), manifest={})
    size = sum(path.stat().st_size for path in (store.root / "stacks" / "old").iterdir())
    flip(store.root / "stacks" / "bad" / "payload")
    assert store.get("stacks", "bad") is None
    store.save_partial("stacks", "coming", "state", lambda path: path.write_text("resume"))
    store.save_partial("stacks", "gone", "state", lambda path: path.write_text("123"))
    store.save_partial("stacks", "live", "state", lambda path: path.write_text("12"))
    (store.root / "stacks" / "old.tmp-1-2").mkdir()
    (store.root / "stacks" / "other.lock-1-2").touch()
    lock(store, age=99)
    store.study("digits")
    (store.root / "notes").mkdir()
    (store.root / "notes" / "todo").write_text("not the store's")
    live, before = {("stacks", "live"), ("stacks", "coming")}, names(store)
    with leases.claim(store.root / "stacks" / "held.lock", 60):
        size += sum(path.stat().st_size for path in (store.root / "damaged").rglob("*") if path.is_file())
        expected = (6, size + 3 + 2)  # old, old.tmp, bad, two partials, a stray of a lock
        assert store.tidy(live, dry_run=True) == expected
        assert [name for name in before if name not in names(store)] == ["stacks/k1.lock"]
        assert store.tidy(live) == expected
        assert sorted(os.listdir(store.root / "stacks")) == ["coming.partial", "held", "held.lock", "live"]
    assert sorted(os.listdir(store.root)) == ["damaged", "notes", "stacks", "studies"]
    assert os.listdir(store.root / "damaged") == []
    assert os.listdir(store.root / "notes") == ["todo"]
    assert store.tidy(live)[0] == 1, "held, now let go"
    assert store.get("stacks", "live")


# -- a disk that will not have it ------------------------------------------------------------------


def test_a_store_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^store .*/file/store is not writable: Not a directory; choose another with \$UNLEARNLAB_STORE$"):
        Store(tmp_path / "file" / "store")
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "chosen"))
    assert Store.default().root == tmp_path / "chosen"
    monkeypatch.delenv("UNLEARNLAB_STORE")
    monkeypatch.chdir(tmp_path)
    assert Store.default().root == tmp_path / ".unlearnlab"


def full_disk(folder: Path) -> None:
    (folder / "payload").write_text("some")
    with open("/dev/full", "w") as file:
        file.write("too much")


def full_rust(folder: Path) -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("writer", [full_disk, full_rust])
def test_a_full_disk_is_one_line_and_leaves_nothing(store, writer):
    with pytest.raises(InputError, match=r"^the disk is full: could not write .*/stacks/k1; free some space, [^\n]*$"):
        store.make("stacks", "k1", writer, manifest={})
    assert names(store) == ["stacks"]
    with pytest.raises(InputError, match="the disk is full"):
        store.save_partial("stacks", "k1", "state", lambda path: full_disk(path.parent))
    assert "stacks/k1.partial/state" not in names(store)


def test_tidy_works_on_a_full_disk(store, monkeypatch):
    store.make("stacks", "k1", write, manifest={})

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(json, "dump", no_space)  # what fills a lock
    assert store.tidy(set())[0] == 1
    assert os.listdir(store.root / "stacks") == []


def test_no_pickle():
    assert "pickle" not in Path(module.__file__).read_text()
