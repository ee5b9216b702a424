// Command gatepost is the agent and its command line, and the one place where concrete drivers, uplinks and stores meet.
// What it decides is which of them there are; everything else is decided in package agent.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"gatepost"
	"gatepost/agent/config"
)

// Exit codes. docs/cli.md and "gatepost help" tell them to people.
const (
	exitDone    = 0
	exitFailed  = 1 // it did not work, or may or may not have
	exitUsage   = 2 // the command line or config.yaml must be changed
	exitNoAgent = 3 // no agent runs on that data directory
	exitRefused = 4 // the agent or the terminal said no, and nothing happened
)

// command is one subcommand.
type command struct {
	name string
	args string // as the help shows them
	help string // one line
	run  func(ctx context.Context, f *flags) error
}

// commands is the whole list. To add a subcommand, add a line.
func commands() []command {
	return []command{
		{"run", "", "run the agent", run},
		{"demo", "", "see all of it work: no terminal, no broker, no config needed", demo},
		{"check", "", "check config, clock, disk, brokers and terminals", check},
		{"status", "", "how the running agent is", status},
		{"devices", "", "the terminals of the running agent", devices},
		{"unlock", "DEVICE", "open a door", unlock},
		{"buffer", "stat|ls", "what waits on disk: counts, or the newest records", bufferCommand},
		{"simulate", "zk", "play a ZKTeco terminal", simulate},
		{"version", "", "the version of this program", showVersion},
	}
}

func main() { os.Exit(execute(os.Args[1:])) }

// execute runs a command line and returns its exit code.
func execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	err := dispatch(ctx, args)
	switch {
	case err == nil, errors.Is(err, errHelped):
		return exitDone
	case ctx.Err() != nil && errors.Is(err, context.Canceled): // run or demo, stopped while they still started
		return exitDone
	}
	complain(os.Stderr, err)
	return codeOf(err)
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		overview(os.Stderr)
		return usagef("say what to do, for example: gatepost demo")
	}
	name, args := args[0], args[1:]
	switch name {
	case "help", "-h", "-help", "--help":
		if len(args) == 0 {
			overview(os.Stdout)
			return nil
		}
		name, args = args[0], []string{"--help"}
	case "-version", "--version":
		name = "version"
	}
	var names []string
	for _, c := range commands() {
		if c.name == name {
			return c.run(ctx, newFlags(c, args))
		}
		names = append(names, c.name)
	}
	return usagef("there is no command %q%s; gatepost help lists them", name, didYouMean(name, append(names, "help")))
}

func overview(w io.Writer) {
	fmt.Fprint(w, `gatepost carries punches from access-control terminals to the cloud, and commands back to the door.

usage: gatepost COMMAND [options]

`)
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-18s %s\n", strings.TrimSpace(c.name+" "+c.args), c.help)
	}
	fmt.Fprint(w, `  help COMMAND       the options of a command

exit codes: 0 done, 1 failed, 2 mistake in the command line or config.yaml, 3 no agent is running,
            4 refused: the agent or the terminal said no, and nothing happened
`)
}

// usageError is a mistake in the command line.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// exitError is an error that decides the exit code itself.
type exitError struct {
	error
	code int
}

func (e exitError) Unwrap() error { return e.error }

// errSaid is an error that its subcommand has told already.
var errSaid = errors.New("it was said")

// codeOf is the exit code for err.
func codeOf(err error) int {
	if e, ok := errors.AsType[exitError](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[config.Mistakes](err); ok {
		return exitUsage
	}
	if gatepost.ClassOf(err) == gatepost.Misconfigured {
		return exitUsage
	}
	return exitFailed
}

// complain tells a person about err. Mistakes in the config look as compilers print them.
func complain(w io.Writer, err error) {
	ms, ok := errors.AsType[config.Mistakes](err)
	switch {
	case errors.Is(err, errSaid):
		return
	case ok:
		fmt.Fprintln(w, ms)
	default:
		fmt.Fprintln(w, "gatepost:", err)
	}
	if hint := gatepost.HintOf(err); hint != "" {
		fmt.Fprintln(w, "hint:", hint)
	}
}
