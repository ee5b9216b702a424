package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gatepost"
	"gatepost/agent"
)

// client asks a running agent over the socket in its data directory.
type client struct {
	dir  string
	http http.Client
}

// answerWithin bounds a question; reading all of a terminal's log may take an hour, but no subcommand asks for that.
const answerWithin = time.Minute

func newClient(dir string) *client {
	if abs, err := filepath.Abs(dir); err == nil { // for the messages
		dir = abs
	}
	c := &client{dir: dir}
	c.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, agent.SocketName))
	}}
	return c
}

// get asks for path and returns the JSON.
func (c *client) get(ctx context.Context, path string) (json.RawMessage, error) {
	return c.do(ctx, http.MethodGet, path, nil)
}

// post sends body as JSON and returns the JSON of the answer.
func (c *client) post(ctx context.Context, path string, body any) (json.RawMessage, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return c.do(ctx, http.MethodPost, path, b)
}

func (c *client) do(ctx context.Context, method, path string, body []byte) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://gatepost"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("the agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the agent says: %s", strings.TrimSpace(string(answer)))
	}
	return answer, nil
}

// errNoAgent is why nobody answers.
var errNoAgent = errors.New("no agent is running")

// explain words why the agent could not be asked.
func (c *client) explain(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &gatepost.Fault{Err: fmt.Errorf("not allowed to ask the agent in %s", c.dir), Hint: "try it with sudo, or as the user that runs gatepost"}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return exitError{&gatepost.Fault{Err: fmt.Errorf("%w in %s", errNoAgent, c.dir),
			Hint: "start it with gatepost run; if it runs elsewhere, name its --config or --data-dir"}, exitNoAgent}
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the agent in %s does not answer", c.dir)
	case ctx.Err() != nil:
		return errors.New("interrupted before the agent answered")
	}
	return fmt.Errorf("ask the agent in %s: %w", c.dir, err)
}
