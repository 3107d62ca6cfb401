"""The files of tests that `make quick` leaves out: they start processes or a browser, train, or take seconds.

A single test is left out by `@pytest.mark.slow`.
"""

SLOW_FILES = {
    "benchmarks": {"test_benchmark"},
    "command_line": {"test_start"},
    "config": {"test_config"},
    "data": {
        "test_broken_input",
        "test_decode_once",
        "test_decoded_squares",
        "test_downloads",
        "test_examine",
        "test_hostile_archives",
        "test_input_scale",
        "test_interruptions",
        "test_prepared_set",
        "test_same_batches",
        "test_torch_loader",
        "test_training_images",
        "test_validation_images",
        "test_verify_set",
        "test_wrong_sources",
    },
    "distributed": {"test_exchange", "test_gpu_memory_link"},
    "evaluation": {"test_ensemble", "test_evaluate", "test_evaluate_weights"},
    "figures": {"test_confusion", "test_figure1", "test_figure3", "test_figure4"},
    "model": {
        "test_bf16",
        "test_cifar_2011",
        "test_every_network",
        "test_freeze",
        "test_fused_steps",
        "test_gpu_steps",
        "test_network",
    },
    "project": {
        "test_printed_commands",
        "test_python_face",
        "test_quick",
        "test_rooms",
        "test_run_commands",
        "test_systems",
    },
    "reports": {"test_dashboard", "test_labbook_page", "test_page", "test_report"},
    "runs": {"test_stored", "test_wandb"},
    "training": {
        "test_host_reads",
        "test_local_layers",
        "test_one_tower",
        "test_photographs",
        "test_shared_folder",
        "test_sweep",
        "test_train",
    },
    "weights": {"test_export", "test_scaled_weights", "test_weights"},
}
