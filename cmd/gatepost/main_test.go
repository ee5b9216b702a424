package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatepost/internal/need"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gatepost": main})
}

// TestScripts runs testdata/*.txt against main itself.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition:           missing,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":  exits,
			"ports":  ports,
			"broker": startMosquitto,
			"until":  until,
			"hup":    hup,
		},
	})
}

// missing is the condition [missing:PROGRAM]. In CI nothing may be left out: there it is an error.
func missing(cond string) (bool, error) {
	program, ok := strings.CutPrefix(cond, "missing:")
	if !ok {
		return false, fmt.Errorf("no such condition: %s", cond)
	}
	_, there := need.Find(program)
	if !there && os.Getenv("CI") == "true" {
		return true, fmt.Errorf("%s is missing, and in CI nothing may be left out", program)
	}
	return !there, nil
}

// exits runs a program that must end with a code: exits CODE program [args...]
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE program [args...]")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// ports sets each variable to a loopback address that is free: ports NAME...
func ports(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		ts.Setenv(name, freeAddr(ts.Fatalf))
	}
}

func freeAddr(fatalf func(string, ...any)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fatalf("%v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startMosquitto starts Debian's broker as Debian configures it and sets two variables: broker ADDR PORT
func startMosquitto(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: broker ADDR PORT")
	}
	addr, stop := mosquitto(ts.Fatalf)
	ts.Defer(stop)
	ts.Setenv(args[0], addr)
	ts.Setenv(args[1], addr[strings.LastIndexByte(addr, ':')+1:])
}

func mosquitto(fatalf func(string, ...any)) (addr string, stop func()) {
	program, _ := need.Find("mosquitto")
	addr = freeAddr(fatalf)
	cmd := exec.Command(program, "-p", addr[strings.LastIndexByte(addr, ':')+1:])
	if err := cmd.Start(); err != nil {
		fatalf("these tests need a broker: apt-get install mosquitto mosquitto-clients (%v)", err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	if !waitFor(func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}) {
		stop()
		fatalf("mosquitto does not listen on %s", addr)
	}
	return addr, stop
}

// until runs a program again and again until its output matches: until PATTERN program [args...]
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN program [args...]")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	if !waitFor(func() bool {
		err := ts.Exec(args[1], args[2:]...)
		return err == nil && pattern.MatchString(ts.ReadFile("stdout"))
	}) {
		ts.Fatalf("no match for %q", args[0])
	}
}

// hup sends SIGHUP to the agent that works in a directory: hup DIR
func hup(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hup DIR")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(filepath.Join(args[0], "gatepost.lock"))))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGHUP))
}

// waitFor says whether is becomes true within 40 seconds: longer than from one heartbeat to the next.
func waitFor(is func() bool) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(40 * time.Second)
	defer late.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-late.C:
			return false
		}
	}
	return true
}
