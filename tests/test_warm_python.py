"""The warm process runs a program as a fresh one would: its arguments, streams, folder and exit code are its own."""

from pathlib import Path

from tests.warm_python import WarmPython


def test_a_program_has_its_own_start_and_end(python: WarmPython, tmp_path: Path) -> None:
    own = "sys.argv, os.getcwd(), __name__, sys.stdin.read()"
    done = python.run(f"import atexit, os, sys; atexit.register(print, 'end'); print({own})", "a", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"['-c', 'a'] {tmp_path} __main__ \nend\n", "")
    python.run("import octavo; octavo.left = 1")
    failed = python.run("import octavo; octavo.left")
    assert failed.returncode == 1
    assert "AttributeError" in failed.stderr, "another program's changes are not seen"
    assert python.run("import sys; sys.exit(3)").returncode == 3
    assert python.run("import os; os.kill(os.getpid(), 9)").returncode == -9
