# Homebrew formula. This repository is its own tap; the formula builds the tap's checkout:
#   brew tap wattspan/wattspan URL-OF-THIS-REPOSITORY
#   brew install --HEAD wattspan/wattspan/wattspan
#   brew services start wattspan          # a daemon for the current user; launchd/install.sh installs one for all users
class Wattspan < Formula
  desc "Energy meter for spans of time, such as one language-model request"
  license any_of: ["MIT", "Apache-2.0"]
  head "file://#{File.expand_path("..", __dir__)}", using: :git, branch: "main"

  depends_on "rust" => :build

  def install
    system "cargo", "install", *std_cargo_args
    system "cargo", "install", *std_cargo_args(path: "crates/wattspan-cli")
    generate_completions_from_executable(bin/"wattspan", "generate", "completions", shells: [:bash, :zsh, :fish])
    (buildpath/"man").mkpath
    system bin/"wattspan", "generate", "man", buildpath/"man"
    man1.install Dir[buildpath/"man/*.1"]
    man8.install Dir[buildpath/"man/*.8"]
  end

  # A Homebrew service runs as the user that starts it, so the socket and the state belong to that user.
  service do
    run [opt_bin/"wattspand", "--socket", var/"run/wattspan/wattspan.sock", "--state-dir", var/"lib/wattspan"]
    keep_alive successful_exit: false
    process_type :interactive
    error_log_path var/"log/wattspan.log"
  end

  def post_install
    (var/"run/wattspan").mkpath
    (var/"lib/wattspan").mkpath
  end

  def caveats
    <<~EOS
      Clients find the service by its socket:
        export WATTSPAN_SOCKET=#{var}/run/wattspan/wattspan.sock
      What can be measured on this Mac:
        wattspan doctor
    EOS
  end

  test do
    system bin/"wattspan", "--version"
    assert_match "rate_hz", shell_output("#{bin}/wattspand --check")
  end
end
