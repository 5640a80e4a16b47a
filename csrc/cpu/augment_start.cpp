// augment_start on the CPU: the lines of a crop are put together as bytes, in parts that stay in cache; then a part is
// converted, its border filled and its noise added, each in vectors.
#include "common/augment_start.h"

#include <torch/library.h>

#include <vector>

#include "common/augment_arguments.h"
#include "cpu/convert.h"
#include "cpu/elementwise.h"
#include "cpu/labels.h"
#include "cpu/noise.h"
#include "cpu/simd.h"

namespace rmcla {
namespace {

// One image on its way. A line is a row of one channel, or, channels last, a row of all channels.
struct CroppedImage {
  const uint8_t* pixels;  // (channels, height, width)
  Crop crop;
  int64_t channels, height, width;
  bool interleaved;    // channels last
  int64_t begin, end;  // the output columns that lie inside the image
  int64_t from;        // the smallest source column of these

  CroppedImage(const uint8_t* pixels, const Crop& crop, int64_t channels, int64_t height, int64_t width,
               bool interleaved)
      : pixels(pixels), crop(crop), channels(channels), height(height), width(width), interleaved(interleaved) {
    const int64_t right = int32_t(crop.right);
    const int64_t shift = crop.mirrored ? right : -right;  // of the image in the output
    begin = std::min(width, std::max<int64_t>(0, shift));
    end = std::max(begin, std::min(width, width + shift));
    from = crop.mirrored ? width - end + right : begin + right;
  }

  int64_t in_line() const { return interleaved ? channels : 1; }
  int64_t line_size() const { return in_line() * width; }
  int64_t lines() const { return interleaved ? height : channels * height; }

  // visit(channel, source row) for the lines [first, last) in the order of memory.
  template <class Visit>
  RMCLA_SHARED void each_line(int64_t first, int64_t last, Visit visit) const {
    int64_t channel = interleaved ? 0 : first / height, row = first - channel * height;
    for (int64_t line = first; line < last; ++line) {
      visit(channel, int64_t(source_row(crop, uint32_t(row))));
      if (++row == height) {
        row = 0;
        ++channel;
      }
    }
  }
};

// A run of a row, forwards or mirrored: eight bytes at a time, the last eight over what is there already.
RMCLA_SHARED void copy_run(const uint8_t* from, bool mirrored, uint8_t* to, int64_t count) {
  if (count < 8) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[mirrored ? count - 1 - i : i];
    return;
  }
  const int64_t last = count - 8;
  for (int64_t i = 0;; i = std::min(i + 8, last)) {
    uint64_t eight;
    std::memcpy(&eight, from + (mirrored ? last - i : i), 8);
    if (mirrored) eight = __builtin_bswap64(eight);
    std::memcpy(to + i, &eight, 8);
    if (i == last) return;
  }
}

// The same with `step` bytes from one output column to the next.
RMCLA_SHARED void scatter_run(const uint8_t* from, bool mirrored, uint8_t* to, int64_t count, int64_t step) {
  for (int64_t i = 0; i < count; ++i) to[i * step] = from[mirrored ? count - 1 - i : i];
}

// Three channels side by side, which the compiler turns into shuffles.
RMCLA_SHARED void interleave_three(const uint8_t* from, int64_t plane, bool mirrored, uint8_t* to, int64_t count) {
  const uint8_t *const a = from, *const b = from + plane, *const c = from + 2 * plane;
  if (mirrored) {
    for (int64_t i = 0, j = count - 1; i < count; ++i, --j) {
      to[3 * i] = a[j];
      to[3 * i + 1] = b[j];
      to[3 * i + 2] = c[j];
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      to[3 * i] = a[i];
      to[3 * i + 1] = b[i];
      to[3 * i + 2] = c[i];
    }
  }
}

// The lines [first, last) as bytes; what lies beyond a border is left as it is.
template <int Bytes>
RMCLA_SHARED void crop_lines_lanes(const CroppedImage& image, int64_t first, int64_t last, uint8_t* bytes) {
  const int64_t plane = image.height * image.width, step = image.in_line(), count = image.end - image.begin;
  const bool mirrored = image.crop.mirrored;
  if (count == 0) return;
  uint8_t* to = bytes + image.begin * step;
  image.each_line(first, last, [&](int64_t channel, int64_t row) __attribute__((always_inline)) {
    if (row < image.height) {
      const uint8_t* const from = image.pixels + channel * plane + row * image.width + image.from;
      if (step == 1) {
        copy_run(from, mirrored, to, count);
      } else if (step == 3) {
        interleave_three(from, plane, mirrored, to, count);
      } else {
        for (int64_t c = 0; c < step; ++c) scatter_run(from + c * plane, mirrored, to + c, count, step);
      }
    }
    to += image.line_size();
  });
}
RMCLA_KERNEL(crop_lines, (const CroppedImage& image, int64_t first, int64_t last, uint8_t* bytes),
             (image, first, last, bytes))

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
        crop_lines(image, line, stop, bytes.data());
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
