"""Which of torch's kernels decoding may use on a GPU; what it computes is held by the tests of inference."""

import torch

from megatron.kernels.cached_attention import without_plans


def test_decoding_on_a_gpu_leaves_out_the_kernel_that_plans_for_every_length():
    cuda = torch.backends.cuda
    with without_plans(torch.device("cuda", 0)):
        assert not cuda.cudnn_sdp_enabled()
        assert cuda.flash_sdp_enabled() and cuda.mem_efficient_sdp_enabled()
        assert cuda.math_sdp_enabled()
    assert cuda.cudnn_sdp_enabled()
