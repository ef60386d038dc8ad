import ctypes
from dataclasses import dataclass

@dataclass
class Kernels:
    run: int
    run_openmp: int
    engine: object

def load_kernels(kind):
    from llvmlite import binding as llvm
    llvm.initialize_native_target(); llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_path(f"/tmp/dev/k/{kind}.o"))
    engine.finalize_object()
    return Kernels(engine.get_function_address("run"), engine.get_function_address("run_openmp"), engine)
