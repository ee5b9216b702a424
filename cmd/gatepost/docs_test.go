package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"gatepost/internal/need"
)

// TestTryIt types what docs/try-it.md says and expects what it shows. Blocks marked "sh" are typed, those that keep
// running in shells of their own; blocks marked "text" must appear, line by line, in what any shell has shown by then,
// with "…" standing for anything. Only the ports are not literal, and the packages are not installed.
func TestTryIt(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/try-it.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"mosquitto", "mosquitto_sub", "mosquitto_pub", "jq", "curl"} {
		need.Program(t, program)
	}
	broker, stop := mosquitto(t.Fatalf)
	t.Cleanup(stop)
	_, brokerPort, _ := strings.Cut(broker, ":")
	s := &shells{t: t, dir: t.TempDir()}
	t.Cleanup(s.close)
	s.port = strings.NewReplacer(
		"127.0.0.1:4370", freeAddr(t.Fatalf), "127.0.0.1:4380", freeAddr(t.Fatalf), "127.0.0.1:1883", broker,
		"mosquitto_sub ", "mosquitto_sub -p "+brokerPort+" ", "mosquitto_pub ", "mosquitto_pub -p "+brokerPort+" ")

	typed := 0
	for _, m := range regexp.MustCompile("(?s)\n```(sh|text)\n(.*?)\n```").FindAllStringSubmatch(string(doc), -1) {
		block := m[2]
		switch {
		case m[1] == "text":
			s.expect(block)
			continue
		case strings.HasPrefix(block, "sudo apt-get "): // the machine's owner has done that
			continue
		case strings.HasPrefix(block, "gatepost run "), strings.HasPrefix(block, "gatepost simulate "), strings.HasPrefix(block, "mosquitto_sub -v"):
			s.keepRunning(block)
		default:
			s.run(block)
		}
		typed++
	}
	if typed < 8 {
		t.Errorf("only %d blocks typed: has the notation changed?", typed)
	}
}

// shells are where a newcomer types, and what they have shown.
type shells struct {
	t    *testing.T
	dir  string
	port *strings.Replacer
	open []*exec.Cmd

	mu    sync.Mutex // guards shown
	shown bytes.Buffer
}

func (s *shells) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.Write(p)
}

func (s *shells) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.String()
}

func (s *shells) shell(block string) *exec.Cmd {
	cmd := exec.Command("bash", "-c", s.port.Replace(block))
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, s, s
	return cmd
}

func (s *shells) run(block string) {
	s.t.Helper()
	if err := s.shell("set -e -o pipefail\n" + block).Run(); err != nil {
		s.t.Fatalf("%s\n%v; all shells:\n%s", block, err, s.output())
	}
}

func (s *shells) keepRunning(block string) {
	s.t.Helper()
	cmd := s.shell("exec " + block)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.open = append(s.open, cmd)
}

func (s *shells) expect(block string) {
	s.t.Helper()
	for line := range strings.Lines(block) {
		line = s.port.Replace(strings.TrimSpace(line))
		pattern := regexp.MustCompile("(?m)^ *" + strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*"))
		if !waitFor(func() bool { return pattern.MatchString(s.output()) }) {
			s.t.Fatalf("docs/try-it.md shows\n%s\nbut the shells show\n%s", line, s.output())
		}
	}
}

func (s *shells) close() {
	for _, cmd := range s.open {
		_ = cmd.Process.Signal(syscall.SIGINT) // it may have ended
		_ = cmd.Wait()
	}
}

// TestCLIDoc holds docs/cli.md against the commands and options there are.
func TestCLIDoc(t *testing.T) {
	doc, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	options := map[string]bool{} // whether the page tells of it
	for _, c := range commands() {
		if !bytes.Contains(doc, []byte("| `gatepost "+c.name)) {
			t.Errorf("docs/cli.md does not tell of the command %q", c.name)
		}
		f := newFlags(c, []string{"--help"})
		f.SetOutput(io.Discard)
		if err := c.run(t.Context(), f); !errors.Is(err, errHelped) {
			t.Errorf("%s --help: %v", c.name, err)
		}
		f.VisitAll(func(o *flag.Flag) { options[o.Name] = false })
	}
	for _, m := range regexp.MustCompile("--([a-z][a-z-]*)").FindAllStringSubmatch(string(doc), -1) {
		if _, ok := options[m[1]]; !ok {
			t.Errorf("docs/cli.md tells of --%s, which no command has", m[1])
		}
		options[m[1]] = true
	}
	for name, told := range options {
		if !told {
			t.Errorf("docs/cli.md does not tell of --%s", name)
		}
	}
}
