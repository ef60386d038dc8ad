"""The compiled engine: kernels in Python, compiled by Numba to object code that is kept on disk.

    params      the record through which Python and the kernels share sizes and addresses
    memory      arrays at addresses, and the barrier between workers
    simd        vector instructions, for the CPU at hand
    elementwise RMSNorm, RoPE, SiLU, softmax, quantization
    fp32        matrix times activations, fp32
    q8_0        the same with int8 weights and activations
    attention   of one new token (decode) and of many (prefill)
    forward     all layers, as one worker of a team runs them
    build       a child process's work: compile a forward pass, and have `check` try it
    check       a fresh process's work: run it on tiny models
    cpu         the vector instructions to compile for
    cache       where object files are kept, and loading them

Only `build` imports Numba, and with it all above: a process that finds its kernels in the cache never loads a
compiler.
"""
