#!/usr/bin/env bash
# GRPO on GSM8K with Qwen2.5-1.5B-Instruct: SkyRL's settings, 4 GPUs that train and generate
#
#   skyrl data gsm8k --output_dir ~/data/gsm8k
#   export WANDB_API_KEY=...
#   bash examples/gsm8k/run_gsm8k.sh
#
# NUM_NODES=2 NUM_GPUS=8 takes two machines with 8 GPUs each (docs/how-to/cluster.md).
# What follows the command overrides what stands here: trainer.epochs=1, or --dry-run, which
# checks every key and says what of this is not built yet.
#
# On a laptop, in a minute, to see it run (the built-in model knows no words and learns nothing
# here; name a model of yours with trainer.policy.model.path):
#
#   NUM_GPUS=1 INFERENCE_BACKEND=transformers LOGGER=console \
#   bash examples/gsm8k/run_gsm8k.sh \
#     trainer.policy.model.path=builtin:tiny trainer.bf16=false trainer.gradient_checkpointing=false \
#     generator.inference_engine.weight_sync_backend=auto \
#     trainer.train_batch_size=8 trainer.policy_mini_batch_size=4 trainer.max_training_steps=2 \
#     generator.sampling_params.max_generate_length=32 \
#     trainer.eval_before_train=false trainer.eval_interval=-1 data.val_data=[]
#
# With NUM_GPUS=2 that runs the layout of GPUs on processors: two processes that train, and one that
# generates beside each.
set -euo pipefail

: "${DATA_DIR:=$HOME/data/gsm8k}"
: "${NUM_NODES:=1}"
: "${NUM_GPUS:=4}" # of each node
: "${LOGGER:=wandb}"
: "${INFERENCE_BACKEND:=vllm}"

skyrl run \
  data.train_data="['$DATA_DIR/train.parquet']" \
  data.val_data="['$DATA_DIR/validation.parquet']" \
  environment.env_class=gsm8k \
  trainer.policy.model.path="Qwen/Qwen2.5-1.5B-Instruct" \
  trainer.policy.optimizer_config.lr=1.0e-6 \
  trainer.algorithm.advantage_estimator="grpo" \
  trainer.algorithm.use_kl_loss=true \
  trainer.strategy=fsdp \
  trainer.placement.colocate_all=true \
  trainer.placement.policy_num_nodes="$NUM_NODES" \
  trainer.placement.policy_num_gpus_per_node="$NUM_GPUS" \
  trainer.placement.critic_num_gpus_per_node="$NUM_GPUS" \
  trainer.placement.ref_num_nodes="$NUM_NODES" \
  trainer.placement.ref_num_gpus_per_node="$NUM_GPUS" \
  generator.inference_engine.backend="$INFERENCE_BACKEND" \
  generator.inference_engine.num_engines="$((NUM_NODES * NUM_GPUS))" \
  generator.inference_engine.tensor_parallel_size=1 \
  generator.inference_engine.gpu_memory_utilization=0.8 \
  generator.inference_engine.run_engines_locally=true \
  generator.inference_engine.weight_sync_backend=nccl \
  generator.batched=true \
  generator.n_samples_per_prompt=5 \
  generator.sampling_params.max_generate_length=1024 \
  trainer.max_prompt_length=512 \
  trainer.epochs=20 \
  trainer.train_batch_size=1024 \
  trainer.policy_mini_batch_size=256 \
  trainer.micro_forward_batch_size_per_gpu=64 \
  trainer.micro_train_batch_size_per_gpu=64 \
  trainer.update_epochs_per_batch=1 \
  trainer.eval_before_train=true \
  trainer.eval_batch_size=1024 \
  trainer.eval_interval=5 \
  trainer.ckpt_interval=10 \
  trainer.ckpt_path="$HOME/ckpts/gsm8k_1.5B_ckpt" \
  trainer.resume_mode=null \
  trainer.logger="$LOGGER" \
  trainer.project_name="gsm8k" \
  trainer.run_name="gsm8k_test" \
  "$@"
