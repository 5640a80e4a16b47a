// augment on the CPU: the lines of each crop are copied as bytes. If a crop reaches beyond a border, its image is first
// filled with `fill`.
#include "common/augment.h"

#include "common/augment_checks.h"
#include "common/registration.h"
#include "cpu/rows.h"

namespace rmcla {
namespace {

// An image of the data set and its crop. A line is one row of the output in memory: a row of one channel or, if the
// output is channels last, a row of all channels.
struct CroppedImage {
  const uint8_t* pixels;  // (channels, height, width)
  Crop crop;
  int64_t channels, height, width;
  bool interleaved;    // whether the output is channels last
  int64_t begin, end;  // the output columns whose source is inside the image
  int64_t from;        // the smallest source column among these

  CroppedImage(const uint8_t* pixels, const Crop& crop, int64_t channels, int64_t height, int64_t width,
               bool interleaved)
      : pixels(pixels), crop(crop), channels(channels), height(height), width(width), interleaved(interleaved) {
    const int64_t right = int32_t(crop.right);
    const int64_t shift = crop.mirrored ? right : -right;  // how far the image lies to the right in the output
    begin = std::min(width, std::max<int64_t>(0, shift));
    end = std::max(begin, std::min(width, width + shift));
    from = crop.mirrored ? width - end + right : begin + right;
  }

  bool whole() const { return crop.down == 0 && end - begin == width; }  // no pixel is beyond a border
};

RMCLA_SHARED uint64_t reversed_bytes(uint64_t x) {  // compilers know this, and make one instruction of it
  x = (x & 0x00ff00ff00ff00ffu) << 8 | (x >> 8 & 0x00ff00ff00ff00ffu);
  x = (x & 0x0000ffff0000ffffu) << 16 | (x >> 16 & 0x0000ffff0000ffffu);
  return x << 32 | x >> 32;
}

// Copies a part of a row, forwards or mirrored, eight bytes at a time. The last eight may overlap those before them.
// With a plain loop and std::memcpy, a batch of 128 images of 3x32x32 took 1.5 times as long.
RMCLA_SHARED void copy_run(const uint8_t* from, bool mirrored, uint8_t* to, int64_t count) {
  if (count < 8) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[mirrored ? count - 1 - i : i];
    return;
  }
  const int64_t last = count - 8;
  for (int64_t i = 0;; i = std::min(i + 8, last)) {
    uint64_t eight;
    std::memcpy(&eight, from + (mirrored ? last - i : i), 8);
    if (mirrored) eight = reversed_bytes(eight);
    std::memcpy(to + i, &eight, 8);
    if (i == last) return;
  }
}

// Copies parts of the rows of three channels into neighbouring bytes. The compiler turns these loops into shuffles.
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

// Copies the whole crop in the order of the output's memory. Output pixels beyond a border are not written.
RMCLA_SHARED void copy_crop(const CroppedImage& image, uint8_t* to) {
  const int64_t plane = image.height * image.width, count = image.end - image.begin;
  const int64_t step = image.interleaved ? image.channels : 1;  // from one column to the next
  const bool mirrored = image.crop.mirrored;
  for (int64_t channel = 0; channel < (image.interleaved ? 1 : image.channels); ++channel) {
    for (int64_t line = 0; line < image.height; ++line, to += image.width * step) {
      const int64_t row = int64_t(source_row(image.crop, uint32_t(line)));
      if (row >= image.height || count == 0) continue;
      const uint8_t* const from = image.pixels + channel * plane + row * image.width + image.from;
      uint8_t* const start = to + image.begin * step;
      if (step == 1) {
        copy_run(from, mirrored, start, count);
      } else if (step == 3) {
        interleave_three(from, plane, mirrored, start, count);
      } else {
        for (int64_t c = 0; c < step; ++c)
          for (int64_t i = 0; i < count; ++i) start[i * step + c] = from[c * plane + (mirrored ? count - 1 - i : i)];
      }
    }
  }
}

Tensor augment(const Tensor& dataset, const Tensor& index, const Tensor& rng, int64_t padding, bool flip, int64_t fill,
               bool channels_last) {
  check_augmentation(dataset, index, rng, padding, fill);
  const int64_t batch = index.size(0), channels = dataset.size(1), height = dataset.size(2), width = dataset.size(3);
  // The index is checked before anything is written.
  const Tensor chosen = batch ? checked_classes("index", index, dataset.size(0)) : index;
  const Tensor images = empty_crops(dataset, index, channels_last);
  const int64_t image_size = channels * height * width;
  if (batch * image_size == 0) return images;
  const uint8_t* const pixels = dataset.const_data_ptr<uint8_t>();
  const int64_t* const row = chosen.const_data_ptr<int64_t>();
  const int64_t* const key = rng.const_data_ptr<int64_t>();
  const int64_t seed = key[0], step = key[rng.stride(0)];
  uint8_t* const to = images.mutable_data_ptr<uint8_t>();
  constexpr int64_t kBytesATask = 1 << 15;
  torch::stable::parallel_for(0, batch, std::max<int64_t>(1, kBytesATask / image_size),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t b = begin; b < end; ++b) {
                                  const Crop crop = crop_of(seed, step, b, uint32_t(padding), flip);
                                  const CroppedImage image(pixels + row[b] * image_size, crop, channels, height, width,
                                                           channels_last && channels > 1);
                                  if (!image.whole()) std::memset(to + b * image_size, int(fill), size_t(image_size));
                                  on_this_processor([&](auto) RMCLA_INLINE { copy_crop(image, to + b * image_size); });
                                }
                              });
  return images;
}

[[maybe_unused]] const bool listed_augment = implement<&augment>("augment");

}  // namespace
}  // namespace rmcla
