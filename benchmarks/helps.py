"""What the commands say of themselves."""

OP_HELP = """Time operators beside other forms of them and the plain convolution, each checked before.

[bold]Examples[/]

  python -m benchmarks op --list                   the cases

  python -m benchmarks op acmix-64@56              one case, batch 1

  python -m benchmarks op 'acmix*' --batch 1,8 --mode train

  python -m benchmarks op acmix-96@20-s2 --threads 1 --isa avx2

  python -m benchmarks op attend-64@56 --device cuda --dtype bfloat16 --batch 64
"""

MODEL_HELP = """Compare networks in turns, time and peak memory: inference, all folded, or the training step.

[bold]Examples[/]

  python -m benchmarks model acmix_resnet50        beside conv_resnet50, batch 1

  python -m benchmarks model acmix_resnet50 sasa_resnet50 --batch 1,8

  python -m benchmarks model acmix_resnet26 --against conv_resnet26 --threads 1 --processes 0

  python -m benchmarks model acmix_resnet50 --mode train --batch 8     forward, loss, backward, SGD

  python -m benchmarks model xvolution_resnet50 --against xvolution_resnet50@trained     what folding brings
"""

RUNTIME_HELP = """Exported networks in onnxruntime or OpenVINO beside a plain network that is exported alike.

[bold]Examples[/]

  python -m benchmarks runtime acmix_resnet50 --operators convattn

  python -m benchmarks runtime acmix_swin_tiny --against swin_tiny --batch 1,8

  python -m benchmarks runtime acmix_resnet50 --runtime openvino --precision bfloat16

  python -m benchmarks runtime acmix_resnet50 --precision int8

  python -m benchmarks runtime san10 --against san10@pytorch
"""

EXPORTS_HELP = """Every network and head in every format of export; docs/exports.md shows what came of it.

[bold]Example[/]

  python -m benchmarks exports
"""

GPU_KERNELS_HELP = """Registers, spills and shared memory of every GPU kernel, compiled without a GPU.

Stop it whenever you like: the same command goes on. docs/gpu-kernels.md shows what came of it.

[bold]Example[/]

  python -m benchmarks gpu-kernels --arch 90
"""

MEMORY_HELP = """Peak memory of one layer, forward and backward, beside an unfold formulation and a convolution.

[bold]Examples[/]

  python -m benchmarks memory

  python -m benchmarks memory --channels 128 --size 28 --processes 3
"""

DOCS_HELP = """Write docs/benchmarks.md and its charts from the newest records.

[bold]Examples[/]

  python -m benchmarks docs

  python -m benchmarks docs --check                says whether they are up to date
"""

DATA_HELP = """Training images a second: class folders, tar shards, and timm's reader of the same shards.

[bold]Examples[/]

  python -m benchmarks data                        with 0, 1 and 2 workers

  python -m benchmarks data --workers 8 --images 50000 --batch 256
"""

START_HELP = """Seconds and peak memory until convattn train has done its first step on many small images.

[bold]Examples[/]

  python -m benchmarks start                       200,000 images in folders, shards and a table

  python -m benchmarks start --images 20000 --rounds 3
"""
