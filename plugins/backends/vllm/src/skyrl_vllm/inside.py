"""What vLLM loads into each of its processes: the name of the transport, nothing heavy."""

BACKEND = "skyrl_file"
"""``--weight-transfer-config``: weights come in files that both processes can read."""


def register() -> None:
    """Tell vLLM about the transport; called once per process by vLLM."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "skyrl_vllm.transfer", "FileTransfer")
