"""Google's compiler: its logs of every kind, a stand-in program that prints them, and what our map says beside."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina_edge.cli import main
from kasmina_edge.errors import EngineError
from kasmina_edge.hardware_simulator.edgetpu_compiler import compile_model, differences, read_log
from kasmina_edge.hardware_simulator.edgetpu_map import map_edgetpu
from kasmina_edge.hardware_simulator.networks import table

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
Read = pytest.CaptureFixture[str]

PARTLY = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 2270 ms.

Input model: model.tflite
Input size: 5.21MiB
Output model: model_edgetpu.tflite
Output size: 6.51MiB
On-chip memory used for caching model parameters: 6.02MiB
On-chip memory remaining for caching model parameters: 1.75KiB
Off-chip memory used for streaming uncached model parameters: 41.75KiB
Number of Edge TPU subgraphs: 1
Total number of operations: 84
Operation log: model_edgetpu.log

Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of the model will \
instead run on the CPU, which is slower. If possible, consider updating your model to use only operations supported by \
the Edge TPU. For details, visit g.co/coral/model-reqs.
Number of operations that will run on Edge TPU: 80
Number of operations that will run on CPU: 4

Operator                       Count      Status

CONV_2D                        60         Mapped to Edge TPU
CONV_2D                        1          More than one subgraph is not supported
ADD                            20         Mapped to Edge TPU
CUSTOM                         1          Operation is working on an unsupported data type
DEQUANTIZE                     2          Operation is working on an unsupported data type
Compilation child process completed within timeout period.
Compilation succeeded!
"""
HEAD = "Edge TPU Compiler version 16.0.384591198\n"
TIMER = HEAD + "Started a compilation timeout timer of 180 seconds.\n"
FAILURES = {
    "Model not quantized": "Edge TPU Compiler version 14.1.317412892\nInvalid model: my.tflite\nModel not quantized\n",
    "Didn't find op for builtin opcode 'CONV_2D' version '6'": HEAD
    + "ERROR: Didn't find op for builtin opcode 'CONV_2D' version '6'. An older version of this builtin might be "
    "supported. Are you using an old TFLite binary with a newer model?\n\nERROR: Registration failed.\n\n"
    "Invalid model: m.tflite\nModel could not be parsed\n",
    "Op builtin_code out of range: 151": HEAD
    + "ERROR: Op builtin_code out of range: 151. Are you using old TFLite binary with newer model?\n"
    "ERROR: Registration failed.\n",
    "due to large activation tensors in model.": TIMER
    + "ERROR: Restored original execution plan after delegate application failure.\nCompilation failed: Compilation "
    "failed due to large activation tensors in model.\nCompilation child process completed within timeout period.\n"
    "Compilation failed! \n",
    "Model failed in Tflite interpreter.": TIMER
    + "ERROR: :344 no_integer_overflow_from_quantization was not true.\nERROR: Node number 31 (CONV_2D) failed to "
    "prepare.\n\nCompilation failed: Model failed in Tflite interpreter. Please ensure model can be loaded/run in "
    "Tflite interpreter.\nCompilation failed! \n",
    "dynamic-sized tensors": TIMER
    + "ERROR: Attempting to use a delegate that only supports static-sized tensors with a graph that has dynamic-sized "
    "tensors.\nCompilation failed: Model failed in Tflite interpreter. Please ensure model can be loaded/run in Tflite "
    "interpreter.\nCompilation child process completed within timeout period.\nCompilation failed! \n",
    "Internal compiler error. Aborting!": "Edge TPU Compiler version 15.0.340273435\n\nInternal compiler error. "
    "Aborting! \n",
    "the log names no reason": "",
}


def program(folder: Path, log: str, *, writes: bool = True, exit_code: int = 0, sleep_s: float = 0.0) -> Path:
    """A stand-in that takes the compiler's arguments, prints a log and leaves a file as the compiler does."""
    path = folder / "edgetpu_compiler"
    path.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys, time\n"
        "arguments = sys.argv[1:]\n"
        "assert arguments[0] == '-s' and '-o' in arguments and arguments[-1].endswith('.tflite'), arguments\n"
        "out = pathlib.Path(arguments[arguments.index('-o') + 1])\n"
        f"time.sleep({sleep_s})\n"
        f"if {writes}: (out / 'model_edgetpu.tflite').write_bytes(pathlib.Path(arguments[-1]).read_bytes()[::-1])\n"
        f"sys.stdout.write({log!r})\n"
        f"sys.exit({exit_code})\n"
    )
    path.chmod(0o755)
    return path


def log_of(name: str) -> str:
    """A log of a whole mapping, in the compiler's form, from our own map of a network."""
    plan = map_edgetpu(table(name))
    rows = "".join(f"{kind:<30} {count:<10} {status}\n" for kind, count, status in plan.table())
    return (
        f"{TIMER}\nModel compiled successfully in 9 ms.\n\nOn-chip memory used for caching model parameters: "
        f"{plan.on_chip_bytes / 2**20:.2f}MiB\nOff-chip memory used for streaming uncached model parameters: "
        f"{plan.streamed_bytes / 2**20:.2f}MiB\nNumber of Edge TPU subgraphs: 1\nTotal number of operations: "
        f"{len(plan.ops)}\n\nOperator                       Count      Status\n\n{rows}Compilation succeeded!\n"
    )


def test_a_log_of_a_partial_mapping() -> None:
    report = read_log(PARTLY)
    assert report.succeeded and report.failure == "" and report.version == "16.0.384591198"
    assert report.on_chip_bytes == round(6.02 * 2**20) and report.remaining_bytes == 1792
    assert report.streamed_bytes == 42752 and report.subgraphs == 1 and report.operations == 84
    assert report.mapped == 80 and sum(row.count for row in report.rows) == 84
    assert report.rows[1].kind == "CONV_2D" and "subgraph" in report.rows[1].status
    assert report.line() == "80 of 84 ops mapped by compiler 16.0.384591198"


@pytest.mark.parametrize("reason", [*FAILURES])
def test_logs_of_failures(reason: str) -> None:
    report = read_log(FAILURES[reason])
    assert not report.succeeded and reason in report.failure and not report.rows
    assert "failed" in report.line() and reason in report.line()


def test_a_search_that_fails_before_it_compiles_has_compiled() -> None:
    tried = "Try to compile segment with 84 ops\nCompilation child process completed within timeout period.\n"
    searched = PARTLY.replace("\nModel compiled", f"{tried}Compilation failed! \n{tried}\nModel compiled", 1)
    assert read_log(searched) == read_log(PARTLY)
    assert not read_log(PARTLY + f"{tried}Compilation failed! \n").succeeded


def test_a_size_that_is_none_is_passed_over() -> None:
    assert read_log(PARTLY.replace("6.02MiB", "6.0.2MiB")).on_chip_bytes is None
    assert read_log(PARTLY.replace("6.02MiB", ".MiB")).on_chip_bytes is None


@given(st.text(alphabet=st.sampled_from([*PARTLY]), max_size=400), st.integers(0, len(PARTLY)))
def test_no_log_is_too_strange(noise: str, cut: int) -> None:
    for text in (noise, PARTLY[:cut], PARTLY[:cut] + noise):
        report = read_log(text)
        assert report.mapped >= 0 and (report.succeeded or report.failure)


def test_a_call_gives_the_file_and_the_report(tmp_path: Path) -> None:
    data = (GOLDEN / "digits.tflite").read_bytes()
    done = compile_model(data, program=str(program(tmp_path, PARTLY)))
    assert done.report == read_log(PARTLY) and done.data == data[::-1] and done.log == PARTLY


def test_a_failing_call_gives_its_reason_and_no_file(tmp_path: Path) -> None:
    path = program(tmp_path, FAILURES["Model not quantized"], writes=True, exit_code=1)
    done = compile_model(b"x", program=str(path))
    assert done.data is None and done.report.failure == "Model not quantized"


def test_a_call_that_hangs_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"more than 0\.3 s and was stopped"):
        compile_model(b"x", program=str(program(tmp_path, "", sleep_s=600)), limit_s=0.3)


def test_no_compiler_and_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="not on PATH"):
        compile_model(b"x")
    with pytest.raises(EngineError, match="cannot be started"):
        compile_model(b"x", program=str(tmp_path / "nobody"))


def test_agreement_and_disagreement_with_our_map() -> None:
    plan = map_edgetpu(table("deeplab-v3-513"))
    assert differences(plan, read_log(log_of("deeplab-v3-513").replace("ARGMAX", "ARG_MAX"))) == ()
    lost = re.sub(r"(ADD +)\d+", r"\g<1>2", log_of("deeplab-v3-513"))
    assert any("ADD: our map takes" in d for d in differences(plan, read_log(lost)))
    cached = read_log(log_of("deeplab-v3-513").replace("streaming uncached model parameters: 2.", "streaming uncached "
                                                       "model parameters: 0.00B\nwas: 2."))  # fmt: skip
    assert any("streamed parameters" in d for d in differences(plan, cached))
    broken = read_log(FAILURES["Model not quantized"])
    assert "the compiler says: Model not quantized" in differences(plan, broken)[0]


def test_on_path_it_is_called_and_compared(tmp_path: Path, capsys: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, PARTLY)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main(["bundle", "map", str(GOLDEN / "digits.tflite"), "--compiler", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["compiler"]["succeeded"] and value["compiler"]["mapped"] == 80
    assert any("ADD: our map takes" in d for d in value["compiler"]["differences"])
    assert main(["bundle", "map", str(GOLDEN / "digits.tflite"), "--compiler"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "80 of 84 ops mapped by compiler 16.0.384591198" in out and "differs:" in out
