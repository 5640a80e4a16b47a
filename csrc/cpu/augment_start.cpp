// augment_start on the CPU: the lines of a crop are put together as bytes, in parts that stay in cache; then a part is
// converted, its border filled and its noise added, each in vectors.
#include "common/augment_start.h"

#include <torch/library.h>

#include <vector>

#include "common/augment_arguments.h"
#include "cpu/augment_start_lines.h"
#include "cpu/convert.h"
#include "cpu/elementwise.h"
#include "cpu/kernels.h"
#include "cpu/labels.h"
#include "cpu/noise.h"

namespace rmcla {
namespace {

void fill_border(const CroppedImage& image, int64_t first, int64_t last, float fill, float* values) {
  const int64_t size = image.line_size(), begin = image.begin * image.in_line(), end = image.end * image.in_line();
  image.each_line(first, last, [&](int64_t, int64_t row) __attribute__((always_inline)) {
    const bool inside = row < image.height;
    for (int64_t i = 0; i < (inside ? begin : size); ++i) values[i] = fill;
    for (int64_t i = inside ? end : size; i < size; ++i) values[i] = fill;
    values += size;
  });
}

struct AugmentRun {
  const uint8_t* dataset;
  const int64_t* index;
  int64_t channels, height, width, seed, step;
  uint32_t padding;
  bool flip, interleaved;
  float fill;
  at::ScalarType dtype;
  char *images, *start;
};

void augment_images(const AugmentRun& run, const PerImage& radii, int64_t batch) {
  const int64_t image_size = run.channels * run.height * run.width;
  const int64_t element = int64_t(c10::elementSize(run.dtype));
  const bool direct = run.dtype == at::kFloat;
  constexpr int64_t kPart = 2048;
  const int64_t grain = std::max<int64_t>(1, 4 * kPart / image_size);
  at::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    const int64_t line_size = run.width * (run.interleaved ? run.channels : 1);
    const int64_t lines_a_part = std::max<int64_t>(1, kPart / line_size), room = lines_a_part * line_size;
    std::vector<uint8_t> bytes(room);
    std::vector<float> uniforms(noise_room(room)), converted(direct ? 0 : room), moved(direct ? 0 : room);
    for (int64_t b = begin; b < end; ++b) {
      const CroppedImage image(run.dataset + run.index[b] * image_size,
                               crop_of(run.seed, run.step, b, run.padding, run.flip), run.channels, run.height,
                               run.width, run.interleaved);
      const float radius = float(radii.at(b * image_size));
      for (int64_t line = 0; line < image.lines(); line += lines_a_part) {
        const int64_t stop = std::min(image.lines(), line + lines_a_part), count = (stop - line) * line_size;
        const int64_t first = b * image_size + line * line_size;
        char *const to = run.images + first * element, *const start = run.start + first * element;
        float* const values = direct ? reinterpret_cast<float*>(to) : converted.data();
        kernels().crop_lines(image, line, stop, bytes.data());
        widen(at::kByte, bytes.data(), values, count);
        fill_border(image, line, stop, run.fill, values);
        if (!direct) {  // the start is that of the image as it is stored
          narrow(run.dtype, values, to, count);
          widen(run.dtype, to, values, count);
        }
        float* const sum = direct ? reinterpret_cast<float*>(start) : moved.data();
        add_noise(run.seed, run.step, first, values, radius, sum, count, uniforms.data());
        if (!direct) narrow(run.dtype, sum, start, count);
      }
    }
  });
}

std::tuple<at::Tensor, at::Tensor> augment_start(const at::Tensor& dataset, const at::Tensor& index,
                                                 const at::Tensor& rng, double epsilon,
                                                 const std::optional<at::Tensor>& epsilons, int64_t padding, bool flip,
                                                 double fill, at::ScalarType dtype, bool channels_last) {
  at::AutoDispatchBelowADInplaceOrView guard;
  check_augmentation(dataset, index, rng, epsilons, padding, dtype);
  const int64_t batch = index.size(0);
  const at::Tensor chosen = batch ? checked_classes("index", index, dataset.size(0)) : index;  // before any write
  const at::Tensor images =
      at::empty({batch, dataset.size(1), dataset.size(2), dataset.size(3)}, dataset.options().dtype(dtype),
                channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  const at::Tensor start = at::empty_like(images);
  if (images.numel() == 0) return {images, start};
  const int64_t* const seed = rng.const_data_ptr<int64_t>();
  const AugmentRun run{dataset.const_data_ptr<uint8_t>(),
                       chosen.const_data_ptr<int64_t>(),
                       dataset.size(1),
                       dataset.size(2),
                       dataset.size(3),
                       seed[0],
                       seed[rng.stride(0)],
                       uint32_t(padding),
                       flip,
                       channels_last && dataset.size(1) > 1,
                       float(fill),
                       dtype,
                       static_cast<char*>(images.mutable_data_ptr()),
                       static_cast<char*>(start.mutable_data_ptr())};
  augment_images(run, PerImage(epsilon, epsilons, images), batch);
  return {images, start};
}

}  // namespace

TORCH_LIBRARY_IMPL(rmcla_fast, CPU, m) { m.impl("augment_start", augment_start); }

}  // namespace rmcla
