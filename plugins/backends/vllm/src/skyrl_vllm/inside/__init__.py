"""What runs in vLLM's processes: the receiving half of each transport.

vLLM calls `register` in each of its processes, through its own plugin entry
point, and imports the module of the backend it was started with. The run reads no more
of this than the names of the backend and of a question.
"""

OWN = "skyrl"
"""``--weight-transfer-config``: weights come by any transport of this package's own."""
HAS_ARRIVED = "skyrl_has_arrived"
"""What a worker is asked, and the one field of its answer: `skyrl_vllm.inside.receiver`."""


def register() -> None:
    """Tell vLLM where its half of the transports is, and of adapters; called once per process by vLLM."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.lora.resolver import LoRAResolverRegistry

    from skyrl_vllm.inside.resolver import Resolver

    if OWN not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(OWN, "skyrl_vllm.inside.own", "OwnReceiver")
    if OWN not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(OWN, Resolver())
