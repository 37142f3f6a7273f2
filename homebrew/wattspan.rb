# A Homebrew formula. Until there is a release to download, install from the main branch, with this file in a tap of yours:
#   brew install --HEAD wattspan
#   brew services start wattspan          # the meter of the user who types this; for all users: launchd/install.sh
class Wattspan < Formula
  desc "Power meter that bills energy to a single question put to a language model"
  homepage "https://github.com/wattspan/wattspan"
  license any_of: ["MIT", "Apache-2.0"]
  head "https://github.com/wattspan/wattspan.git", branch: "main"

  depends_on "rust" => :build

  def install
    system "cargo", "install", *std_cargo_args
    generate_completions_from_executable(bin/"wattspan", "generate", "completions")
    (buildpath/"man").mkpath
    system bin/"wattspan", "generate", "man", buildpath/"man"
    man1.install Dir[buildpath/"man/*.1"]
    man8.install Dir[buildpath/"man/*.8"]
  end

  # Homebrew's services run as the user who starts them; the socket is the user's own, and so is the directory.
  service do
    run [opt_bin/"wattspand", "--socket", var/"run/wattspan/wattspan.sock", "--state-dir", var/"lib/wattspan"]
    environment_variables PATH: std_service_path_env
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
      Clients of the service find it by its socket:
        export WATTSPAN_SOCKET=#{var}/run/wattspan/wattspan.sock
      What can be measured on this Mac:
        wattspan doctor
    EOS
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/wattspan --version")
    assert_match "rate_hz", shell_output("#{bin}/wattspand --check")
  end
end
