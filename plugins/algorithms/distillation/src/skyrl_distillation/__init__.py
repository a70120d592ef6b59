"""On-policy distillation: a teacher judges every token that the policy sampled.

`skyrl_distillation.advantage` is the method, `skyrl_distillation.no_op` SkyRL's
estimator that hands rewards on as they are.
"""
