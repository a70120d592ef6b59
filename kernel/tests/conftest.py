"""Ray reads some of its settings when a test module imports it, so they are made before."""

from skyrl_kernel.ray.environment import prepare

prepare()
