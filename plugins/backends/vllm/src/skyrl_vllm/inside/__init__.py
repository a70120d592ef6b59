"""What runs in vLLM's processes: the receiving half of each transport.

vLLM calls `register` in each of its processes, through its own plugin entry
point, and imports the module of the backend it was started with. Nothing here
is imported by the run.
"""

FILES = "skyrl_files"
"""``--weight-transfer-config``: weights come in files that both processes can read."""


def register() -> None:
    """Tell vLLM where its halves of the transports are; called once per process by vLLM."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for name, module, receiver in ((FILES, "skyrl_vllm.inside.files", "FileReceiver"),):
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, receiver)
