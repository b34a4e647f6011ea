"""The published U-Nets' configurations, as far as they differ from the defaults."""

SD1 = {"cross_attention_dim": 768}
SD2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER = SDXL | {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
UPSCALER = {
    "in_channels": 7,
    "block_out_channels": (256, 512, 512, 1024),
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    "only_cross_attention": (True, True, True, False),
    "cross_attention_dim": 1024,
    "num_class_embeds": 1000,
    "use_linear_projection": True,
}
UNETS = {
    "sd15_unet": SD1,
    "sd15_inpaint_unet": SD1 | {"in_channels": 9},
    "sd_instruct_pix2pix_unet": SD1 | {"in_channels": 8},
    "lcm_sd15_unet": SD1 | {"time_cond_proj_dim": 256},
    "sd21_unet": SD2,
    "sd2_inpaint_unet": SD2 | {"in_channels": 9},
    "sd2_depth_unet": SD2 | {"in_channels": 5},
    "sd_x4_upscaler_unet": UPSCALER,
    "sdxl_base_unet": SDXL,
    "sdxl_inpaint_unet": SDXL | {"in_channels": 9},
    "sdxl_refiner_unet": REFINER,
}

# Published parameter counts.
COUNTS = {
    "sd15_unet": 859_520_964,
    "sd15_inpaint_unet": 859_535_364,
    "sd_instruct_pix2pix_unet": 859_532_484,
    "lcm_sd15_unet": 859_602_884,
    "sd21_unet": 865_910_724,
    "sd2_inpaint_unet": 865_925_124,
    "sd2_depth_unet": 865_913_604,
    "sd_x4_upscaler_unet": 473_398_020,
    "sdxl_base_unet": 2_567_463_684,
    "sdxl_inpaint_unet": 2_567_478_084,
    "sdxl_refiner_unet": 2_259_526_660,
}
