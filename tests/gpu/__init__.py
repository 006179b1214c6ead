"""The fused attention kernels. They need a CUDA GPU: `make test-gpu`. Where there is none, every test here runs with a
float64 kernel in their place, on the CPU and as small as it can be, so that the tests themselves are known to work."""
