"""Published figures of the FastAT Benchmark: 21 methods of fast adversarial training on three data sets.

Source: benchmark_data.json of Pan and Yao, "FastAT Benchmark" (arXiv 2604.22853, 2026, its code is in the repository
fzjcdt/FastAT_Benchmark on GitHub). Every figure is a mean over the seeds 0, 1 and 2 with its standard deviation.
Accuracies are in %, for epsilon 8/255. The networks are a ResNet-18 for CIFAR and a PreActResNet-18 for Tiny-ImageNet,
which were trained on a GPU that the benchmark does not name. Its code divides bytes by 2^30, so its "GB" are GiB.
"""

from __future__ import annotations

from functools import cache

from rmcla_fast.paper.published import PublishedRow

ATTACKS = ("clean", "ce10", "ce20", "ce50", "autoattack")
FIGURES = (*ATTACKS, "seconds", "memory_gib")
"""The figures of a row in order: five accuracies, the seconds of training, and the GiB of GPU memory."""

RECIPES = ("n-fgsm", "n-mc-la", "r-mc-la", "n-fgsm-la")
"""The recipes that `rmcla reproduce fastat` trains. The list changes with what the measurements say."""

PUBLISHED_AS = {"n-fgsm": "N-FGSM", "fgsm-rs": "FGSM-RS"}
"""The recipes of this library that are methods of the benchmark, with their names there."""

# A method, and then the mean and the standard deviation of each of FIGURES.
CIFAR10 = """
PGD-10 with averaging 82.36  0.32   55.05 0.34   54.28 0.20   54.17 0.17   50.49  0.15    7026.80 154.09    1.39 0.00
NuAT                  80.98  0.91   55.33 0.14   54.78 0.20   54.63 0.25   50.10  0.18    2936.85  22.56    1.90 0.00
LIET                  80.68  0.51   56.69 0.18   56.12 0.19   55.97 0.19   49.99  0.15    2605.29  73.57    1.40 0.00
FGSM-PGI              79.72  0.63   56.43 0.18   55.91 0.18   55.82 0.21   49.89  0.08    2646.65  52.58    2.54 0.00
FGSM-FUAP             80.64  1.28   56.35 0.31   55.85 0.33   55.75 0.38   49.73  0.12    2927.89  31.42    1.40 0.00
FGSM-CUAP             80.76  2.10   56.30 0.02   55.69 0.15   55.58 0.22   49.55  0.22    2706.19  21.48    1.40 0.00
FGSM-UAP              80.61  0.48   56.49 0.17   55.90 0.07   55.77 0.13   49.44  0.14    2551.80  10.13    1.40 0.00
GAT                   85.10  0.13   54.91 0.06   53.98 0.09   53.81 0.14   49.15  0.15    2875.82  27.83    1.90 0.00
FGSM-RS-CS            80.54  2.06   53.99 0.23   53.37 0.22   53.12 0.29   48.64  0.38    1824.07  90.86    1.95 0.00
FGSM-PCO              84.69  0.32   55.04 0.25   54.36 0.18   54.18 0.21   48.52  0.32    2997.04 144.98    2.54 0.01
GradAlign             79.39  1.97   53.57 0.44   53.02 0.31   52.87 0.29   47.99  0.62    5612.39  10.22    2.01 0.01
N-FGSM                78.59  2.34   53.64 0.25   53.13 0.27   53.07 0.28   47.77  0.41    1940.75  42.25    1.39 0.00
N-AAER                77.67  0.48   52.84 0.16   52.44 0.18   52.37 0.15   47.38  0.18    1863.55  98.24    1.39 0.00
ZeroGrad              75.85  3.07   51.59 2.06   51.12 1.97   51.06 1.98   45.94  2.19    1924.46 264.95    1.39 0.00
FGSM-MEP-CS           83.55  3.14   51.11 0.54   50.09 0.32   49.80 0.36   45.35  0.81    2141.50  46.42    3.66 0.01
Free-AT               75.20  0.43   49.32 0.22   48.92 0.29   48.83 0.26   44.34  0.17    1978.59   9.41    1.40 0.01
PGD-10                85.35  0.14   48.35 0.18   46.74 0.15   46.31 0.10   44.33  0.08    6953.97 172.97    1.30 0.01
FGSM-RS               77.66  4.65   49.15 5.09   48.38 5.28   48.27 5.33   43.09  5.33    1902.17  10.76    1.39 0.00
SSAT                  84.80  2.24   52.40 0.45   51.70 0.53   51.46 0.57   38.33  1.55    2120.88  14.09    1.40 0.00
FGSM-AT               69.17  0.95   42.99 0.33   42.59 0.28   42.49 0.27   37.28  0.30    1996.07  53.31    1.39 0.00
ELLE                  77.78  8.82   50.74 3.46   48.89 5.98   47.19 8.82   32.46 25.27    2942.99  60.25    2.50 0.01
"""

CIFAR100 = """
PGD-10 with averaging 57.62  0.34   32.31 0.16   31.99 0.16   31.90 0.14   26.90  0.17    7015.43  68.15    1.39 0.00
LIET                  50.47  0.69   32.64 0.53   32.46 0.46   32.44 0.51   26.64  0.13    2343.70   8.93    1.40 0.01
FGSM-PGI              56.61  0.34   32.18 0.39   31.88 0.32   31.85 0.23   26.29  0.16    2656.53  33.16    2.52 0.00
FGSM-RS-CS            54.79  1.07   32.42 0.29   32.11 0.25   32.08 0.29   26.20  0.26    1878.41 190.14    1.95 0.00
FGSM-FUAP             56.29  1.13   31.76 0.31   31.42 0.51   31.36 0.46   25.95  0.08    3009.01  51.04    1.41 0.00
FGSM-CUAP             55.12  1.80   31.65 0.26   31.43 0.28   31.40 0.31   25.85  0.50    2865.16  11.46    1.40 0.00
FGSM-UAP              57.84  0.28   31.43 0.24   31.19 0.25   31.07 0.31   25.84  0.24    2662.54   4.85    1.40 0.00
GradAlign             54.61  0.75   31.21 0.05   30.98 0.05   30.92 0.02   25.37  0.14    5613.01   6.31    2.01 0.00
ZeroGrad              57.25  0.98   30.70 0.26   30.23 0.35   30.15 0.32   25.00  0.14    2025.50   9.41    1.39 0.00
FGSM-MEP-CS           59.60  1.88   31.42 0.12   30.99 0.03   30.86 0.11   24.86  0.28    2113.57 220.07    3.66 0.00
N-FGSM                53.22  2.73   30.58 0.25   30.40 0.22   30.35 0.25   24.86  0.46    2063.26  14.26    1.39 0.00
N-AAER                51.95  0.75   27.37 1.38   27.04 1.38   26.95 1.43   22.74  1.17    1731.43   9.77    1.39 0.00
GAT                   65.52  0.34   27.66 0.16   26.80 0.12   26.67 0.16   22.06  0.08    2945.59  31.94    1.90 0.00
Free-AT               48.98  0.19   27.39 0.31   27.22 0.34   27.19 0.34   21.76  0.25    1980.92  25.49    1.39 0.00
PGD-10                59.11  0.39   26.68 0.09   25.93 0.04   25.82 0.09   21.44  0.23    6724.17  37.64    1.31 0.01
FGSM-RS               49.00  3.64   27.50 2.54   27.36 2.49   27.32 2.51   21.42  2.24    2065.97  22.44    1.39 0.00
ELLE                  47.48  3.45   26.68 2.45   26.40 2.53   26.34 2.53   21.21  2.37    2934.95  21.76    2.51 0.00
FGSM-PCO              64.45  1.08   26.32 0.42   25.75 0.44   25.69 0.28   19.97  0.43    2828.23 223.22    2.54 0.00
SSAT                  66.79  1.11   24.88 0.52   23.49 0.54   23.10 0.56   18.83  0.73    2134.76  33.15    1.40 0.00
FGSM-AT               39.50  0.77   21.42 0.55   21.25 0.52   21.18 0.54   16.62  0.54    2072.48   5.72    1.39 0.00
NuAT                  52.63 14.39   25.37 1.81   23.04 0.92   21.63 1.70   14.41  3.29    3092.07  38.61    1.90 0.00
"""

TINY_IMAGENET = """
LIET                  44.80  0.08   26.64 0.19   26.54 0.17   26.52 0.17   19.88  0.09   11463.39  21.02    4.61 0.00
PGD-10 with averaging 48.07  0.97   26.38 0.22   26.19 0.21   26.15 0.22   19.77  0.16   28572.77  24.98    4.56 0.00
FGSM-PGI              47.89  0.99   26.57 0.03   26.32 0.04   26.29 0.07   19.55  0.11   11200.37  52.94   18.57 0.00
FGSM-CUAP             47.22  0.89   26.34 0.38   26.13 0.38   26.13 0.38   19.19  0.09   12098.58  58.66    4.60 0.00
FGSM-FUAP             48.45  1.25   26.32 0.15   26.10 0.17   26.09 0.17   19.10  0.18   13111.93  51.70    4.60 0.00
FGSM-UAP              49.39  0.36   26.75 0.27   26.46 0.29   26.37 0.29   18.90  0.28   10994.11  32.28    4.58 0.00
ELLE                  43.70  0.83   25.15 0.12   24.95 0.11   24.91 0.12   18.81  0.21   19270.18  57.17    8.85 0.00
N-FGSM                47.50  1.55   25.52 0.14   25.28 0.22   25.22 0.18   18.79  0.08    8163.30   7.81    4.56 0.00
FGSM-RS-CS            43.63  0.55   25.90 0.16   25.71 0.19   25.71 0.19   18.74  0.11   10000.28 107.18    6.64 0.00
FGSM-MEP-CS           49.76  0.24   26.47 0.25   26.20 0.22   26.17 0.25   18.23  0.19   10622.89  37.74   21.21 0.00
ZeroGrad              46.14  3.99   25.02 1.14   24.81 1.06   24.73 1.00   18.15  1.11    8218.72  25.29    4.56 0.00
GradAlign             45.43  0.49   24.54 0.31   24.35 0.24   24.32 0.24   17.87  0.19   35944.00 105.39    6.76 0.00
PGD-10                51.37  0.19   23.36 0.21   22.90 0.25   22.78 0.18   17.04  0.08   28575.32 138.08    4.47 0.00
FGSM-RS               43.91  3.34   23.06 0.59   22.87 0.64   22.85 0.62   16.33  0.67    8128.66  21.19    4.56 0.00
FGSM-AT               39.99  7.05   21.14 4.51   20.92 4.43   20.92 4.43   14.87  3.77    8109.43  36.24    4.56 0.00
Free-AT               36.06  0.33   19.96 0.21   19.85 0.22   19.81 0.21   13.51  0.12    8293.47  13.32    4.57 0.00
SSAT                  59.82  0.66   18.75 0.14   17.82 0.16   17.55 0.09   11.94  0.12    9458.99  65.63    4.58 0.00
GAT                   57.33  0.61   17.83 0.20   17.06 0.16   16.94 0.19   11.33  0.06   14382.82   8.76    6.57 0.00
FGSM-PCO              59.67  0.84   19.61 0.15   18.93 0.09   18.72 0.09   11.24  0.21   15338.78  64.39   13.84 0.00
NuAT                  26.63  3.10   15.15 0.54   15.08 0.52   15.08 0.55   10.20  0.44   15308.53  11.33    6.58 0.00
"""

_TABLES = {"cifar10": CIFAR10, "cifar100": CIFAR100, "tiny-imagenet": TINY_IMAGENET}


@cache
def published_rows(data: str) -> tuple[PublishedRow, ...]:
    """Return the published rows of a data set, the most robust under AutoAttack first; none if there are none."""
    recipe_of = {name: recipe for recipe, name in PUBLISHED_AS.items()}
    rows = []
    for line in _TABLES.get(data, "").strip().splitlines():
        name, *numbers = line.rsplit(maxsplit=2 * len(FIGURES))
        halves = (numbers[::2], numbers[1::2])
        means, deviations = (dict(zip(FIGURES, map(float, half), strict=True)) for half in halves)
        rows.append(PublishedRow(name, recipe_of.get(name, ""), means, data=data, deviations=deviations))
    return tuple(sorted(rows, key=lambda row: -row.figures["autoattack"]))


def source_of(recipe: str, data: str) -> PublishedRow:
    """Return the published row of the method that a recipe trains; a row without figures if there is none."""
    found = [row for row in published_rows(data) if row.recipe == recipe]
    return found[0] if found else PublishedRow(PUBLISHED_AS.get(recipe, recipe), recipe, {}, data=data)
