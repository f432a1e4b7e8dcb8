#!/bin/sh
cd /home/spyke/project || exit 1
unset ACCELERATE_USE_CPU LOCAL_RANK RANK TQDM_DISABLE
export PYTHONUNBUFFERED=1
export PYTHONIOENCODING=utf-8
export COLUMNS=250
export PYTORCH_ENABLE_MPS_FALLBACK=1
exec /home/spyke/venv/bin/accelerate launch \
  --config_file=output/loras/spyke/runs/20260220-101530-spyke_plasma_v1/accelerate.yaml \
  --num_processes=1 \
  --num_machines=1 \
  --mixed_precision=no \
  --dynamo_backend=no \
  --num_cpu_threads_per_process=4 \
  /home/spyke/sd-scripts/train_network.py \
  --pretrained_model_name_or_path=/home/spyke/tools/ComfyUI/models/checkpoints/AnythingXL_inkBase.safetensors \
  --output_dir=output/loras/spyke \
  --output_name=spyke_plasma_v1 \
  --save_model_as=safetensors \
  --save_every_n_steps=200 \
  --max_train_epochs=4 \
  --learning_rate=0.0001 \
  --unet_lr=0.0001 \
  --text_encoder_lr=5e-05 \
  --lr_scheduler=cosine \
  --lr_warmup_steps=0 \
  --network_module=networks.lora \
  --network_dim=32 \
  --network_alpha=16 \
  --mixed_precision=no \
  --save_precision=float \
  --optimizer_type=AdamW \
  --no_half_vae \
  --clip_skip=2 \
  --prior_loss_weight=1.0 \
  --max_data_loader_n_workers=1 \
  --persistent_data_loader_workers \
  --gradient_checkpointing \
  --seed=42 \
  --save_state \
  --save_every_n_epochs=1 \
  --save_last_n_epochs_state=2 \
  --save_last_n_steps_state=1 \
  --dataset_config=output/loras/spyke/runs/20260220-101530-spyke_plasma_v1/dataset.toml \
  --logging_dir=output/loras/spyke/runs/20260220-101530-spyke_plasma_v1/tensorboard \
  --log_with=tensorboard
