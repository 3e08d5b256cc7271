"""What is read off a compiled program."""

from pathlib import Path

import pytest

from tests.gpu.cases import reason_to_skip
from tests.gpu.facts import assemble, copied, kernels, launches

LISTING = """\
001: kCustomKernel [source | next=2 ] lora_kernel grid: [2, 1, 1] threads: [128, 1, 1]  shared_memory: 64 bytes
002: kWhile        [prev=1 | next=5 ]
  body:
    003: kCustomKernel [source | sink] loop_add_fusion grid: [1, 1, 1] threads: [1, 1, 1]  shared_memory: 0 bytes
004: kCopy         [prev=2 | next=5 ] kCopy
005: kCustomKernel [prev=4 | next=6 ] lora_kernel__1 grid: [2, 1, 1] threads: [128, 1, 1]  shared_memory: 96 bytes
006: kCustomKernel [prev=4 | sink   ] lora_kernel_fusion grid: [2, 1, 1] threads: [1, 1, 1]  shared_memory: 512 bytes

"""

PTX = """\
.version 8.0
.target sm_80
.address_size 64
.visible .entry {name}(.param .u64 data) {limit}
{{
  .reg .u64 %at;
  .reg .f32 %v<{values}>;
  ld.param.u64 %at, [data];
  {body}
  ret;
}}
"""


def program(name: str, *, limit: str = "", values: int = 100, end: str = "") -> str:
    """Reads values, then writes them in the other order, so that all are held at once."""
    loads = [f"ld.volatile.global.f32 %v{n}, [%at+{4 * n}];" for n in range(values)]
    stores = [f"st.volatile.global.f32 [%at+{4 * n}], %v{values - 1 - n};" for n in range(values)]
    return PTX.format(name=name, limit=limit, values=values, body="\n  ".join([*loads, *stores, end]))


def test_copies_are_found_by_shape() -> None:
    text = """
      %copy.1 = f32[2,8]{1,0} copy(%p), metadata={}
      %copy-start.2 = (s32[4]{0}, s32[4]{0}, u32[]) copy-start(%q)
      %fused = bf16[2,8]{1,0} fusion(%copy.1), kind=kLoop, calls=%copy_computation
      %other = pred[3]{0} copy(%r)
    """
    assert copied(text, ["f32[2,8]", "s32[4]", "bf16[2,8]", "s32[8]"]) == ["f32[2,8]", "s32[4]"]


def test_what_orders_others_is_no_launch(tmp_path: Path) -> None:
    (tmp_path / "module_1.thunk_sequence.txt").write_text(LISTING)
    assert [launch.kind for launch in launches(tmp_path)] == ["kCustomKernel"] * 2 + ["kCopy"] + ["kCustomKernel"] * 2


@pytest.mark.gpu_compile
@pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))
def test_a_kernel_is_the_most_that_any_of_its_shapes_takes(tmp_path: Path) -> None:
    (tmp_path / "module_1.thunk_sequence.txt").write_text(LISTING)
    (tmp_path / "a.ptx").write_text(program("lora_kernel", values=8))
    (tmp_path / "b.ptx").write_text(program("lora_kernel__1", limit=".maxnreg 32"))
    (found,) = kernels(tmp_path, ["lora_kernel"]).values()
    assert (found.launches, found.shared, found.mma, found.registers) == (2, 96, "none", 32)
    assert found.spilled > 0


@pytest.mark.gpu_compile
@pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))
def test_registers_that_do_not_fit_are_spilled(tmp_path: Path) -> None:
    (tmp_path / "all.ptx").write_text(program("all"))
    (tmp_path / "few.ptx").write_text(program("few", limit=".maxnreg 32"))
    assert assemble(tmp_path / "all.ptx")["spilled"] == 0
    assert assemble(tmp_path / "few.ptx")["spilled"] > 0
