"""To and from other systems' checkpoints.

The way of a weight out: `hf_gpt_bigcode` or `hf_starcoder2` say of which rows of ours (`mapping`) a tensor of theirs
is made, and `hf_export` copies these out of a checkpoint (`source`). In: the same rows the other way round, out of a
folder (`hf_import`, `hf_folder`), or the parts of Megatron's ranks put together (`megatron_import`, `megatron_ranks`,
`torch_file`). Either is tensors under our names (`imported`), which are written as a checkpoint. Configurations are
read by `fields` and `megatron_args`.
"""
