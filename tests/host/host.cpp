// A block host on libtorch: plays a TorchScript file as the realtime hosts of the RAVE family do, and measures it.
//
//   host MODEL.ts [options]
//
//   --input   FILE.wav, noise (default), silence or impulse@SAMPLE; a wav has as many channels as the method times --batch
//   --blocks  how many (default: the file's, or 1000)          --block   samples per block (default 2048)
//   --method  forward (default), or a chain of objects such as encode,decode
//   --thread  none (default), new (one per block, as Pd) or worker (one that stays)
//   --vector  samples per audio callback (default 64)          --batch   rows, as mc.nn~ plays them (default 1)
//   --set     NAME=VALUE[,VALUE]@BLOCK, any number of times    --bufsize SIZE@BLOCK, likewise
//   --output  what a listener hears, as a float wav            --answers what the model answered, block after block
//   --threads of torch (default 1; 0 leaves it alone)          --warm    blocks before statistics begin (default 16)
//   --sr, --seed, --paced (in real time), --bare (ask the file nothing: the RAVE VST does not call get_methods)
//
// What the hosts do, and this one therefore does: methods come from get_methods() and METHOD_params; a method is called
// with one float32 tensor (batch, channels, samples / ratio), a permuted view, inside InferenceMode; of every `ratio`
// input samples the last one is taken, every output frame is held for `ratio` samples; the block is a power of two and
// no smaller than the largest ratio; a new thread computes each block while the previous answer plays, or the audio
// callback does it itself; set_NAME(value, ...) runs outside InferenceMode and answers 0; an unknown method is `forward`;
// a block that fails repeats the previous one. The input tensor is one buffer that is written over, so a model that
// keeps a view of its input is found out. The wav of --output is what a listener hears, host latency included; the
// report goes to stdout as one line of JSON.
//
// Build: tests/host/build.py. Linux with glibc (the allocation counter stands in front of glibc's malloc).

#include <ATen/Parallel.h>
#include <torch/script.h>
#include <torch/version.h>

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cerrno>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

// --------------------------------------------------------------------------------------------- allocations
// Every way to the heap ends in one of these: operator new calls malloc, torch's CPU allocator posix_memalign.

namespace heap {

struct Count {
  int64_t calls = 0;
  int64_t bytes = 0;
};

std::atomic<bool> counting{false};
std::atomic<int64_t> all_calls{0};
std::atomic<int64_t> all_bytes{0};
thread_local Count mine;

inline void note(std::size_t bytes) {
  if (!counting.load(std::memory_order_relaxed)) return;
  all_calls.fetch_add(1, std::memory_order_relaxed);
  all_bytes.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
  mine.calls += 1;
  mine.bytes += static_cast<int64_t>(bytes);
}

}  // namespace heap

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t size) {
  heap::note(size);
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
  heap::note(count * size);
  return __libc_calloc(count, size);
}
void* realloc(void* old, std::size_t size) {
  heap::note(size);
  return __libc_realloc(old, size);
}
void* memalign(std::size_t alignment, std::size_t size) {
  heap::note(size);
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) { return memalign(alignment, size); }
void* valloc(std::size_t size) { return memalign(4096, size); }
int posix_memalign(void** result, std::size_t alignment, std::size_t size) {
  heap::note(size);
  void* memory = __libc_memalign(alignment, size);
  if (memory == nullptr) return ENOMEM;
  *result = memory;
  return 0;
}
}

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::duration duration) { return std::chrono::duration<double, std::milli>(duration).count(); }

double thread_cpu_milliseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e3 * static_cast<double>(now.tv_sec) + 1e-6 * static_cast<double>(now.tv_nsec);
}

double resident_megabytes() {
  long pages = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1e6;
}

rusage usage() {
  rusage result{};
  getrusage(RUSAGE_SELF, &result);
  return result;
}

// What happened, without the frames of C++ that torch adds.
std::string brief(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  return of_torch ? of_torch->what_without_backtrace() : error.what();
}

// --------------------------------------------------------------------------------------------------- json

class Json {
 public:
  static std::string text(const std::string& value) {
    std::string out = "\"";
    for (const char c : value) {
      if (c == '"' || c == '\\') {
        out += '\\';
        out += c;
      } else if (static_cast<unsigned char>(c) < 0x20) {
        out += c == '\n' ? "\\n" : " ";
      } else {
        out += c;
      }
    }
    return out + "\"";
  }
  static std::string number(double value) {
    if (!std::isfinite(value)) return "null";
    char digits[40];
    std::snprintf(digits, sizeof digits, "%.9g", value);
    return digits;
  }
  template <class Values>
  static std::string numbers(const Values& values) {
    std::string out;
    for (const auto& value : values) out += (out.empty() ? "" : ", ") + number(static_cast<double>(value));
    return "[" + out + "]";
  }

  Json& raw(const std::string& key, const std::string& value) {
    body_ += (body_.empty() ? "" : ", ") + text(key) + ": " + value;
    return *this;
  }
  Json& add(const std::string& key, const std::string& value) { return raw(key, text(value)); }
  Json& add(const std::string& key, const char* value) { return raw(key, text(value)); }
  Json& add(const std::string& key, bool value) { return raw(key, value ? "true" : "false"); }
  Json& add(const std::string& key, double value) { return raw(key, number(value)); }
  Json& add(const std::string& key, int64_t value) { return raw(key, std::to_string(value)); }
  Json& add(const std::string& key, const Json& value) { return raw(key, value.string()); }
  std::string string() const { return "{" + body_ + "}"; }

 private:
  std::string body_;
};

// ---------------------------------------------------------------------------------------------------- wav

struct Sound {
  int64_t channels = 0;
  int64_t sample_rate = 0;
  std::vector<float> samples;  // interleaved
  int64_t length() const { return channels ? static_cast<int64_t>(samples.size()) / channels : 0; }
};

uint32_t little(const unsigned char* bytes, int count) {
  uint32_t value = 0;
  for (int i = count - 1; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

Sound read_wav(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  const std::vector<char> content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto* bytes = reinterpret_cast<const unsigned char*>(content.data());
  const std::size_t size = content.size();
  if (size < 12 || std::memcmp(bytes, "RIFF", 4) != 0 || std::memcmp(bytes + 8, "WAVE", 4) != 0)
    throw std::runtime_error(path + " is no RIFF WAVE file");
  Sound sound;
  uint32_t format = 0, bits = 0;
  for (std::size_t at = 12; at + 8 <= size;) {
    const std::size_t length = std::min<std::size_t>(little(bytes + at + 4, 4), size - at - 8);
    const unsigned char* chunk = bytes + at + 8;
    if (std::memcmp(bytes + at, "fmt ", 4) == 0 && length >= 16) {
      format = little(chunk, 2);
      if (format == 0xFFFE && length >= 26) format = little(chunk + 24, 2);
      sound.channels = little(chunk + 2, 2);
      sound.sample_rate = little(chunk + 4, 4);
      bits = little(chunk + 14, 2);
    } else if (std::memcmp(bytes + at, "data", 4) == 0) {
      if (format == 3 && bits == 32) {
        sound.samples.resize(length / 4);
        std::memcpy(sound.samples.data(), chunk, sound.samples.size() * 4);
      } else if (format == 1 && bits == 16) {
        for (std::size_t i = 0; i + 1 < length; i += 2)
          sound.samples.push_back(static_cast<float>(static_cast<int16_t>(little(chunk + i, 2))) / 32768.0f);
      } else {
        throw std::runtime_error(path + ": only 16-bit integers and 32-bit floats are read");
      }
    }
    at += 8 + length + (length & 1);
  }
  if (sound.channels == 0 || sound.samples.empty()) throw std::runtime_error(path + " holds no sound");
  return sound;
}

void write_wav(const std::string& path, const Sound& sound) {
  std::ofstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot write " + path);
  const auto put = [&file](uint32_t value, int count) {
    for (int i = 0; i < count; ++i) file.put(static_cast<char>(value >> (8 * i) & 0xFF));
  };
  const auto bytes = static_cast<uint32_t>(sound.samples.size() * 4);
  const auto channels = static_cast<uint32_t>(sound.channels), rate = static_cast<uint32_t>(sound.sample_rate);
  file.write("RIFF", 4), put(36 + bytes, 4), file.write("WAVEfmt ", 8), put(16, 4), put(3, 2), put(channels, 2);
  put(rate, 4), put(rate * channels * 4, 4), put(channels * 4, 2), put(32, 2), file.write("data", 4), put(bytes, 4);
  file.write(reinterpret_cast<const char*>(sound.samples.data()), bytes);
}

// ------------------------------------------------------------------------------------------------- options

enum class Threading { none, fresh, worker };

struct Message {  // at the start of a block of the first object
  int64_t block = 0;
  std::string name;
  std::vector<std::string> values;
};

struct Options {
  std::string model;
  std::vector<std::string> methods{"forward"};
  std::string input = "noise", output, answers;
  int64_t blocks = -1, block = 2048, vector = 64, batch = 1, threads = 1, sample_rate = 0, warm = 16, seed = 0;
  Threading threading = Threading::none;
  bool paced = false, bare = false;
  std::vector<Message> sets, sizes;
};

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

int64_t whole(const std::string& text, const std::string& flag) {
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0') throw std::runtime_error(flag + ": " + text + " is no whole number");
  return value;
}

Message read_message(const std::string& text, const std::string& flag) {  // NAME=VALUE,VALUE@BLOCK or SIZE@BLOCK
  Message message;
  const std::size_t at = text.rfind('@');
  message.block = at == std::string::npos ? 0 : whole(text.substr(at + 1), flag);
  const std::string head = text.substr(0, at);
  const std::size_t equals = head.find('=');
  message.name = head.substr(0, equals);
  if (equals != std::string::npos) message.values = split(head.substr(equals + 1), ',');
  return message;
}

Options read_options(const std::vector<std::string>& arguments) {
  Options options;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& flag = arguments[i];
    if (flag.rfind("--", 0) != 0) {
      if (!options.model.empty()) throw std::runtime_error("one model only, not also " + flag);
      options.model = flag;
      continue;
    }
    if (flag == "--paced" || flag == "--bare") {
      (flag == "--paced" ? options.paced : options.bare) = true;
      continue;
    }
    if (i + 1 == arguments.size()) throw std::runtime_error(flag + " needs a value");
    const std::string& value = arguments[++i];
    if (flag == "--method") options.methods = split(value, ',');
    else if (flag == "--input") options.input = value;
    else if (flag == "--output") options.output = value;
    else if (flag == "--answers") options.answers = value;
    else if (flag == "--blocks") options.blocks = whole(value, flag);
    else if (flag == "--block") options.block = whole(value, flag);
    else if (flag == "--vector") options.vector = whole(value, flag);
    else if (flag == "--batch") options.batch = whole(value, flag);
    else if (flag == "--threads") options.threads = whole(value, flag);
    else if (flag == "--sr") options.sample_rate = whole(value, flag);
    else if (flag == "--warm") options.warm = whole(value, flag);
    else if (flag == "--seed") options.seed = whole(value, flag);
    else if (flag == "--set") options.sets.push_back(read_message(value, flag));
    else if (flag == "--bufsize") options.sizes.push_back(read_message(value, flag));
    else if (flag == "--thread" && value == "none") options.threading = Threading::none;
    else if (flag == "--thread" && value == "new") options.threading = Threading::fresh;
    else if (flag == "--thread" && value == "worker") options.threading = Threading::worker;
    else throw std::runtime_error("unknown option " + flag + " " + value);
  }
  if (options.model.empty()) throw std::runtime_error("which model? host MODEL.ts [options]");
  if (options.methods.empty()) throw std::runtime_error("--method needs a name");
  if (options.vector < 1 || options.block < 1 || options.batch < 1 || options.warm < 2)
    throw std::runtime_error("--vector, --block and --batch are at least 1, --warm at least 2");
  return options;
}

// --------------------------------------------------------------------------------------------------- model

struct Ratios {
  int64_t in_channels, in_ratio, out_channels, out_ratio;
};

std::string describe(const c10::IValue& value) {
  if (value.isBool()) return value.toBool() ? "true" : "false";
  if (value.isInt()) return std::to_string(value.toInt());
  if (value.isDouble()) return Json::number(value.toDouble());
  if (value.isString()) return Json::text(value.toStringRef());
  std::vector<c10::IValue> items;
  if (value.isTuple()) items = value.toTuple()->elements().vec();
  else if (value.isList()) items = value.toListRef().vec();
  else return Json::text(value.tagKind());
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ", ") + describe(item);
  return "[" + out + "]";
}

class Model {
 public:
  // Loads, and asks what hosts ask before their audio starts; all of it counts as loading. `bare` asks nothing that is a
  // method: the RAVE VST reads METHOD_params alone.
  Model(const std::string& path, bool bare) {
    const auto start = Clock::now();
    module_ = torch::jit::load(path, torch::kCPU);
    module_.eval();
    for (const std::string& name : listed_methods(bare)) {
      if (!module_.hasattr(name + "_params") || !module_.find_method(name)) continue;
      const c10::IValue params = module_.attr(name + "_params");
      if (!params.isTensor() || params.toTensor().numel() != 4)
        throw std::runtime_error(name + "_params is not a tensor of 4 numbers");
      const at::Tensor numbers = params.toTensor().to(torch::kLong).contiguous();
      const auto* n = numbers.data_ptr<int64_t>();
      methods[name] = {n[0], n[1], n[2], n[3]};
    }
    if (methods.empty()) throw std::runtime_error(path + " has no method with METHOD_params: no host can play it");
    for (const auto& entry : methods) {
      highest_ratio = std::max({highest_ratio, entry.second.in_ratio, entry.second.out_ratio});
    }
    if (!bare)
      for (const std::string& name : attributes()) types(name);
    load_ms = milliseconds(Clock::now() - start);
  }

  // An unknown method is forward, without a word: so do the hosts.
  std::string resolve(const std::string& method) const {
    if (methods.count(method)) return method;
    if (methods.count("forward")) return "forward";
    throw std::runtime_error("no method " + method + " and no forward to fall back on");
  }

  // Blocks are powers of two, at least the largest ratio of all methods.
  int64_t round_block(int64_t wanted) const {
    int64_t block = 1;
    while (block < std::max(wanted, highest_ratio)) block *= 2;
    return block;
  }

  std::vector<std::string> attributes() {
    std::vector<std::string> names;
    if (!module_.find_method("get_attributes")) return names;
    const c10::IValue list = module_.get_method("get_attributes")({});
    for (const auto& item : list.toListRef())
      if (item.toStringRef() != "none") names.push_back(item.toStringRef());
    return names;
  }

  std::vector<int64_t> types(const std::string& attribute) {
    const at::Tensor codes = module_.attr(attribute + "_params").toTensor();
    if (codes.dim() != 1) throw std::runtime_error(attribute + "_params must have one dimension");
    const at::Tensor numbers = codes.to(torch::kLong).contiguous();
    return {numbers.data_ptr<int64_t>(), numbers.data_ptr<int64_t>() + numbers.numel()};
  }

  std::string get(const std::string& attribute) {
    const c10::IValue value = module_.get_method("get_" + attribute)({});
    if (!value.isTuple() && !value.isList()) throw std::runtime_error("get_" + attribute + " returns no tuple or list");
    return describe(value);
  }

  // One positional argument per value; anything but the answer 0 is a failure.
  void set(const std::string& attribute, const std::vector<std::string>& values) {
    const std::vector<std::string> known = attributes();
    if (std::find(known.begin(), known.end(), attribute) == known.end())
      throw std::runtime_error("no attribute " + attribute);
    const std::vector<int64_t> codes = types(attribute);
    if (codes.size() != values.size())
      throw std::runtime_error(attribute + " takes " + std::to_string(codes.size()) + " values, not " +
                               std::to_string(values.size()));
    std::vector<c10::IValue> arguments;
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const double number = std::strtod(values[i].c_str(), nullptr);
      if (codes[i] == 0) arguments.emplace_back(values[i] == "true" || number != 0);
      else if (codes[i] == 1) arguments.emplace_back(static_cast<int64_t>(number));
      else if (codes[i] == 2) arguments.emplace_back(number);
      else if (codes[i] == 3) arguments.emplace_back(values[i]);
      else throw std::runtime_error(attribute + " has type code " + std::to_string(codes[i]) + ", which no message sets");
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const c10::IValue answer = module_.get_method("set_" + attribute)(std::move(arguments));
    if (!answer.isInt() || answer.toInt() != 0) throw std::runtime_error("set_" + attribute + " did not answer 0");
  }

  // Lent for the length of one block; a setter waits for it.
  torch::jit::Method method(const std::string& name) { return module_.get_method(name); }
  std::mutex& mutex() { return mutex_; }

  int64_t sample_rate() {
    for (const char* name : {"sr", "sampling_rate"})
      if (module_.hasattr(name) && module_.attr(name).isInt()) return module_.attr(name).toInt();
    return 0;
  }

  std::map<std::string, Ratios> methods;
  int64_t highest_ratio = 1;
  double load_ms = 0;

 private:
  std::vector<std::string> listed_methods(bool bare) {
    std::vector<std::string> names;
    if (!bare && module_.find_method("get_methods")) {
      const c10::IValue list = module_.get_method("get_methods")({});
      if (list.isList()) {
        for (const auto& item : list.toListRef()) names.push_back(item.toStringRef());
        return names;
      }
    }
    for (const auto& method : module_.get_methods()) names.push_back(method.name());
    return names;
  }

  torch::jit::Module module_;
  std::mutex mutex_;
};

// -------------------------------------------------------------------------------------------------- object

struct BlockRecord {
  float wall_ms, cpu_ms, budget_ms;
  int32_t own_calls, all_calls, call_calls;
  int64_t own_bytes;
  bool settled;  // the compiler has seen this block size often enough
};

// One nn~ object: a model, a method, its rings and its thread.
class Object {
 public:
  Object(const Options& options, const std::string& method)
      : model(options.model, options.bare), options_(options), name_(model.resolve(method)), ratios_(model.methods.at(name_)) {
    resize(options.block);
    if (options.threading == Threading::worker) worker_ = std::thread([this] { work(); });
  }

  ~Object() {
    finish();
    if (worker_.joinable()) {
      {
        const std::lock_guard<std::mutex> lock(desk_);
        quit_ = true;
      }
      bell_.notify_all();
      worker_.join();
    }
  }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  int64_t inputs() const { return ratios_.in_channels * options_.batch; }
  int64_t outputs() const { return ratios_.out_channels * options_.batch; }
  int64_t block() const { return block_; }
  int64_t vector() const { return vector_; }
  int64_t latency() const { return (options_.threading == Threading::none ? 1 : 2) * block_ - vector_; }
  bool at_border() const { return position_ == 0; }

  // Room for the records, its pages touched now: the host's own memory must not look like the model's.
  void reserve(int64_t blocks) {
    records.resize(static_cast<std::size_t>(blocks));
    std::memset(static_cast<void*>(records.data()), 1, records.size() * sizeof(BlockRecord));
    records.clear();
  }

  void set_sample_rate(int64_t rate) { sample_rate_ = rate; }

  // The message `bufsize`: rings anew, whatever waited in them is lost.
  void resize(int64_t wanted) {
    finish();
    block_ = model.round_block(wanted);
    vector_ = std::min(options_.vector, block_);
    if (block_ % vector_) throw std::runtime_error("--vector must divide the block");
    position_ = 0;
    since_resize_ = 0;
    const auto room = [this](int64_t channels) { return std::vector<float>(static_cast<std::size_t>(channels * block_)); };
    collecting_ = computing_in_ = room(inputs());
    playing_ = computing_out_ = room(outputs());
    has_answer_ = false;
    const c10::InferenceMode guard;
    x_ = torch::zeros({ratios_.in_channels, options_.batch, block_ / ratios_.in_ratio});
    seen_ = x_.permute({1, 0, 2});
  }

  // One audio vector, channel after channel.
  void perform(const float* input, float* output) {
    for (int64_t c = 0; c < inputs(); ++c)
      std::copy_n(input + c * vector_, vector_, collecting_.data() + c * block_ + position_);
    position_ += vector_;
    if (position_ == block_) {
      position_ = 0;
      if (options_.threading == Threading::none) {
        computing_in_.swap(collecting_);
        compute();
        take_answer();
      } else {
        finish();
        if (has_answer_) take_answer();
        computing_in_.swap(collecting_);
        launch();
      }
    }
    for (int64_t c = 0; c < outputs(); ++c)
      std::copy_n(playing_.data() + c * block_ + position_, vector_, output + c * vector_);
  }

  // Wait until nothing computes.
  void finish() {
    if (options_.threading == Threading::fresh && fresh_.joinable()) fresh_.join();
    if (options_.threading == Threading::worker && worker_.joinable()) {
      std::unique_lock<std::mutex> lock(desk_);
      bell_.wait(lock, [this] { return !busy_; });
    }
  }

  std::string report() const;

  Model model;
  std::vector<BlockRecord> records;
  std::vector<float> answers;  // what the model said, interleaved
  bool keep_answers = false;
  int64_t late = 0, errors = 0, nonfinite = 0;
  std::string first_error;

 private:
  void launch() {
    if (options_.threading == Threading::fresh) {
      fresh_ = std::thread([this] { compute(); });
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(desk_);
      busy_ = true;
    }
    bell_.notify_all();
  }

  void work() {
    for (std::unique_lock<std::mutex> lock(desk_);;) {
      bell_.wait(lock, [this] { return busy_ || quit_; });
      if (quit_) return;
      lock.unlock();
      compute();
      lock.lock();
      busy_ = false;
      bell_.notify_all();
    }
  }

  void take_answer() { playing_.swap(computing_out_); }

  void compute() {
    const std::lock_guard<std::mutex> lock(model.mutex());
    const heap::Count before = heap::mine;
    const int64_t all_before = heap::all_calls;
    heap::Count call;
    heap::counting = true;
    const double cpu = thread_cpu_milliseconds();
    const auto start = Clock::now();
    bool failed = false;
    std::string reason;
    try {
      const c10::InferenceMode guard;
      fill();
      const heap::Count call_before = heap::mine;
      const at::Tensor y = call_method();
      call = {heap::mine.calls - call_before.calls, heap::mine.bytes - call_before.bytes};
      hold(y);
    } catch (const std::exception& error) {
      failed = true;
      reason = brief(error);
    }
    const double wall = milliseconds(Clock::now() - start);
    const double spent = thread_cpu_milliseconds() - cpu;
    heap::counting = false;
    const double budget = 1e3 * static_cast<double>(block_) / static_cast<double>(sample_rate_);
    note(failed, reason);
    late += wall > budget;
    records.push_back({static_cast<float>(wall), static_cast<float>(spent), static_cast<float>(budget),
                       static_cast<int32_t>(heap::mine.calls - before.calls),
                       static_cast<int32_t>(heap::all_calls - all_before), static_cast<int32_t>(call.calls),
                       heap::mine.bytes - before.bytes, since_resize_ >= options_.warm});
    ++since_resize_;
    has_answer_ = true;
  }

  // Of every in_ratio samples the last one.
  void fill() {
    float* x = x_.data_ptr<float>();
    const int64_t ratio = ratios_.in_ratio;
    for (int64_t c = 0; c < inputs(); ++c) {
      const float* from = computing_in_.data() + c * block_ + ratio - 1;
      for (int64_t t = 0; t < block_ / ratio; ++t) *x++ = from[t * ratio];
    }
  }

  at::Tensor call_method() {
    torch::jit::Method method = model.method(name_);
    std::vector<c10::IValue> arguments;
    arguments.emplace_back(seen_);
    const c10::IValue answer = method(std::move(arguments));
    if (!answer.isTensor()) throw std::runtime_error(name_ + " returned no tensor");
    return answer.toTensor();
  }

  // (B, C, frames) to channel after channel, each frame held for out_ratio samples.
  void hold(const at::Tensor& y) {
    const int64_t frames = block_ / ratios_.out_ratio, ratio = ratios_.out_ratio;
    if (y.scalar_type() != torch::kFloat) throw std::runtime_error(name_ + " returned a tensor that is not float32");
    if (y.numel() != outputs() * frames)
      throw std::runtime_error(name_ + " returned " + std::to_string(y.numel()) + " numbers, expected " +
                               std::to_string(outputs() * frames));
    const at::Tensor dense = y.is_contiguous() ? y : y.contiguous();
    const float* from = dense.data_ptr<float>();
    for (int64_t b = 0; b < options_.batch; ++b)
      for (int64_t c = 0; c < ratios_.out_channels; ++c) {
        float* to = computing_out_.data() + (c * options_.batch + b) * block_;
        for (int64_t n = 0; n < frames; ++n, ++from) std::fill_n(to + n * ratio, ratio, *from);
      }
  }

  // What happened, outside of the measured time. A block that failed plays the previous one again.
  void note(bool failed, const std::string& reason) {
    if (failed) {
      ++errors;
      if (first_error.empty()) first_error = reason;
      computing_out_ = playing_;
    }
    for (const float sample : computing_out_) nonfinite += !std::isfinite(sample);
    if (!keep_answers) return;
    for (int64_t t = 0; t < block_; ++t)
      for (int64_t c = 0; c < outputs(); ++c) answers.push_back(computing_out_[static_cast<std::size_t>(c * block_ + t)]);
  }

  const Options& options_;
  std::string name_;
  Ratios ratios_;
  int64_t block_ = 0, vector_ = 0, position_ = 0, since_resize_ = 0, sample_rate_ = 44100;
  std::vector<float> collecting_, computing_in_, computing_out_, playing_;
  at::Tensor x_, seen_;
  bool has_answer_ = false;
  std::thread fresh_, worker_;
  std::mutex desk_;
  std::condition_variable bell_;
  bool busy_ = false, quit_ = false;
};

template <class Value>
Json quantiles(std::vector<Value> values) {
  Json json;
  json.add("count", static_cast<int64_t>(values.size()));
  if (values.empty()) return json;
  std::sort(values.begin(), values.end());
  const auto at = [&values](double share) {
    const auto last = static_cast<double>(values.size() - 1);
    return static_cast<double>(values[static_cast<std::size_t>(std::ceil(share * last))]);
  };
  return json.add("min", at(0)).add("p50", at(0.5)).add("p99", at(0.99)).add("p999", at(0.999)).add("max", at(1));
}

std::string Object::report() const {
  std::vector<float> wall, cpu;
  std::vector<int64_t> own, all, call, bytes;
  int64_t late_settled = 0;
  for (const BlockRecord& record : records) {
    if (!record.settled) continue;
    wall.push_back(record.wall_ms), cpu.push_back(record.cpu_ms);
    own.push_back(record.own_calls), all.push_back(record.all_calls), call.push_back(record.call_calls);
    bytes.push_back(record.own_bytes);
    late_settled += record.wall_ms > record.budget_ms;
  }
  std::vector<float> first;
  for (std::size_t i = 0; i < std::min<std::size_t>(4, records.size()); ++i) first.push_back(records[i].wall_ms);
  Json allocations;
  allocations.add("thread", quantiles(own)).add("process", quantiles(all)).add("call", quantiles(call));
  allocations.add("bytes", quantiles(bytes));
  Json json;
  json.add("method", name_).add("block", block_).add("latency", latency()).add("load_ms", model.load_ms);
  json.add("blocks", static_cast<int64_t>(records.size()));
  json.add("budget_ms", 1e3 * static_cast<double>(block_) / static_cast<double>(sample_rate_));
  json.raw("first_ms", Json::numbers(first)).add("wall_ms", quantiles(wall)).add("cpu_ms", quantiles(cpu));
  json.add("allocations", allocations).add("late", late).add("late_settled", late_settled);
  json.add("errors", errors).add("first_error", first_error).add("nonfinite", nonfinite);
  return json.string();
}

// --------------------------------------------------------------------------------------------------- input

// What enters the first object, a vector at a time; nothing is held in memory but a file.
class Source {
 public:
  Source(const Options& options, int64_t channels) : channels_(channels), state_(static_cast<uint64_t>(options.seed) * 2 + 1) {
    const std::string& kind = options.input;
    if (kind == "noise") kind_ = Kind::noise;
    else if (kind == "silence") kind_ = Kind::silence;
    else if (kind.rfind("impulse@", 0) == 0) kind_ = Kind::impulse, at_ = whole(kind.substr(8), "--input");
    else {
      kind_ = Kind::file;
      sound = read_wav(kind);
      if (sound.channels != channels)
        throw std::runtime_error(kind + " has " + std::to_string(sound.channels) + " channels; this takes " +
                                 std::to_string(channels));
    }
  }

  void next(float* out, int64_t length) {  // channel after channel
    for (int64_t c = 0; c < channels_; ++c)
      for (int64_t t = 0; t < length; ++t) out[c * length + t] = sample(c, now_ + t);
    now_ += length;
  }

  Sound sound;

 private:
  enum class Kind { noise, silence, impulse, file };

  float sample(int64_t channel, int64_t t) {
    switch (kind_) {
      case Kind::noise:
        state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
        return 0.5f * (static_cast<float>(static_cast<int32_t>(state_ >> 32)) / 2147483648.0f);
      case Kind::impulse: return t == at_ ? 1.0f : 0.0f;
      case Kind::file: return t < sound.length() ? sound.samples[static_cast<std::size_t>(t * channels_ + channel)] : 0.0f;
      default: return 0.0f;
    }
  }

  Kind kind_ = Kind::noise;
  int64_t channels_, at_ = 0, now_ = 0;
  uint64_t state_;
};

// ---------------------------------------------------------------------------------------------------- play

struct Pace {
  int64_t late_ticks = 0;
  double worst_ms = 0;  // how late the worst audio vector was
};

void apply(const Options& options, int64_t number, std::vector<std::unique_ptr<Object>>& chain, std::vector<std::string>& log) {
  for (const Message& message : options.sizes)
    if (message.block == number)
      for (auto& object : chain) object->resize(whole(message.name, "--bufsize"));
  for (const Message& message : options.sets) {
    if (message.block != number) continue;
    Json entry;
    entry.add("name", message.name).add("block", number);
    std::string problem;
    for (auto& object : chain) {
      try {
        object->finish();  // in a host the message may also overtake a block in flight: here it arrives where it says
        object->model.set(message.name, message.values);
      } catch (const std::exception& error) {
        problem = brief(error);
      }
    }
    log.push_back(entry.add("ok", problem.empty()).add("error", problem).string());
  }
}

std::string list(const std::vector<std::string>& items) {
  std::string out;
  for (const std::string& item : items) out += (out.empty() ? "" : ", ") + item;
  return "[" + out + "]";
}

Json contract(Model& model, const Options& options) {
  Json methods, attributes, json;
  for (const auto& entry : model.methods) {
    const Ratios& r = entry.second;
    methods.raw(entry.first, Json::numbers(std::vector<int64_t>{r.in_channels, r.in_ratio, r.out_channels, r.out_ratio}));
  }
  for (const std::string& name : model.attributes()) {
    Json attribute;
    try {
      attribute.raw("types", Json::numbers(model.types(name)));
      attribute.raw("value", model.get(name));
    } catch (const std::exception& error) {
      attribute.add("error", brief(error));
    }
    attributes.add(name, attribute);
  }
  json.add("model", options.model).add("torch", TORCH_VERSION).add("threads", options.threads);
  json.add("highest_ratio", model.highest_ratio).add("methods", methods).add("attributes", attributes);
  return json;
}

int play(const Options& options) {
  const double rss_start = resident_megabytes();
  at::manual_seed(static_cast<uint64_t>(options.seed));
  std::vector<std::unique_ptr<Object>> chain;
  for (const std::string& method : options.methods) chain.push_back(std::make_unique<Object>(options, method));
  for (std::size_t i = 1; i < chain.size(); ++i)
    if (chain[i]->inputs() != chain[i - 1]->outputs())
      throw std::runtime_error("--method: the outputs of one object do not fit the inputs of the next");
  const double rss_loaded = resident_megabytes();
  Object& first = *chain.front();
  Object& last = *chain.back();
  Source source(options, first.inputs());
  int64_t rate = options.sample_rate ? options.sample_rate : first.model.sample_rate();
  if (rate <= 0) rate = source.sound.sample_rate ? source.sound.sample_rate : 44100;
  int64_t blocks = options.blocks;
  if (blocks < 0) blocks = source.sound.length() ? -(-source.sound.length() / first.block()) : 1000;
  for (auto& object : chain) object->set_sample_rate(rate), object->reserve(blocks + 1);
  last.keep_answers = !options.answers.empty();

  std::size_t widest = 1;
  for (const auto& object : chain) widest = std::max<std::size_t>(widest, std::max(object->inputs(), object->outputs()));
  std::vector<float> wire_in(widest * options.vector), wire_out(widest * options.vector);
  Sound heard{last.outputs(), rate, {}};
  std::vector<std::string> log;
  std::vector<double> rss;
  rss.reserve(64);
  rusage warm{};
  Pace pace;
  const auto start = Clock::now();
  double due_ms = 0;
  for (int64_t number = 0; number < blocks; ++number) {
    apply(options, number, chain, log);
    do {
      if (options.paced) std::this_thread::sleep_until(start + std::chrono::duration_cast<Clock::duration>(
                                                                   std::chrono::duration<double, std::milli>(due_ms)));
      const int64_t vector = first.vector();
      source.next(wire_in.data(), vector);
      for (auto& object : chain) {
        object->perform(wire_in.data(), wire_out.data());
        wire_in.swap(wire_out);
      }
      due_ms += 1e3 * static_cast<double>(vector) / static_cast<double>(rate);
      if (options.paced) {
        const double behind = milliseconds(Clock::now() - start) - due_ms;
        pace.late_ticks += behind > 0;
        pace.worst_ms = std::max(pace.worst_ms, behind);
      }
      if (!options.output.empty())
        for (int64_t t = 0; t < vector; ++t)
          for (int64_t c = 0; c < heard.channels; ++c)
            heard.samples.push_back(wire_in[static_cast<std::size_t>(c * vector + t)]);
    } while (!first.at_border());
    if (number + 1 == std::min(blocks, options.warm)) warm = usage();
    if (number + 1 >= options.warm && (number + 1) % std::max<int64_t>(1, blocks / 32) == 0)
      rss.push_back(resident_megabytes());
  }
  for (auto& object : chain) object->finish();
  const rusage end = usage();
  const double rss_end = resident_megabytes();

  if (!options.output.empty()) write_wav(options.output, heard);
  if (!options.answers.empty()) write_wav(options.answers, Sound{last.outputs(), rate, std::move(last.answers)});
  Json report = contract(first.model, options);
  int64_t latency = 0;
  std::vector<std::string> objects;
  for (const auto& object : chain) latency += object->latency(), objects.push_back(object->report());
  static const char* const names[] = {"none", "new", "worker"};
  report.add("thread", names[static_cast<int>(options.threading)]).add("vector", first.vector());
  report.add("sample_rate", rate).add("host_latency", latency).raw("objects", list(objects)).raw("sets", list(log));
  Json memory, faults, pacing;
  memory.add("start", rss_start).add("loaded", rss_loaded).raw("playing", Json::numbers(rss));
  memory.add("end", rss_end).add("peak", static_cast<double>(end.ru_maxrss) * 1024 / 1e6);
  faults.add("warm", static_cast<int64_t>(warm.ru_minflt)).add("end", static_cast<int64_t>(end.ru_minflt));
  report.add("rss_mb", memory).add("minor_faults", faults);
  if (options.paced) report.add("paced", pacing.add("late_vectors", pace.late_ticks).add("worst_ms", pace.worst_ms));
  std::cout << report.string() << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = read_options({argv + 1, argv + argc});
    // OpenMP reads its environment before main, and every new thread starts from there: begin again with the right one.
    const std::string wanted = std::to_string(options.threads);
    const char* const found = std::getenv("OMP_NUM_THREADS");
    if (options.threads > 0 && (found == nullptr || wanted != found)) {
      setenv("OMP_NUM_THREADS", wanted.c_str(), 1);
      setenv("MKL_NUM_THREADS", wanted.c_str(), 1);
      execv("/proc/self/exe", argv);
    }
    if (options.threads > 0) at::set_num_threads(static_cast<int>(options.threads));
    return play(options);
  } catch (const std::exception& error) {
    std::cerr << "host: " << brief(error) << std::endl;
    return 1;
  }
}
