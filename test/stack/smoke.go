package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// smoke uses the stack as a developer would and says what it saw.
func (s *stack) smoke(ctx context.Context) error {
	var id string
	expect := func(want string, args ...string) func() error {
		return func() error {
			out, err := s.cli(ctx, append([]string{"exec", id, "--"}, args...)...)
			if err == nil && out != want {
				err = fmt.Errorf("%v printed %q, want %q", args, out, want)
			}
			return err
		}
	}
	steps := []struct {
		name string
		do   func() error
	}{
		{"create", func() (err error) {
			id, err = s.cli(ctx, "create", "--template", "tiny", "--timeout", "10m")
			return err
		}},
		{"exec", func() error { return expect("42", "sh", "-c", "echo $((6 * 7))")() }},
		{"write a file", func() error { return expect("", "sh", "-c", "echo kept > /tmp/note")() }},
		{"pause", func() error { _, err := s.cli(ctx, "pause", id); return err }},
		{"resume", func() error { _, err := s.cli(ctx, "resume", id); return err }},
		{"what was written is there", func() error { return expect("kept", "cat", "/tmp/note")() }},
		{"the queue is empty", func() error {
			out, err := s.cli(ctx, "queue", "ls", "--json")
			if err == nil && strings.TrimSpace(out) != "[]" {
				err = fmt.Errorf("it holds %s", out)
			}
			return err
		}},
		{"kill", func() error { _, err := s.cli(ctx, "kill", id); return err }},
		{"drain the node", func() error {
			_, err := s.cli(ctx, "node", "drain", s.Services["hecatoncheir"].Environment["TARTARUS_NODE_NAME"], "--deadline", "1m")
			return err
		}},
	}
	for _, step := range steps {
		began := time.Now()
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Printf("%8d ms  %s\n", time.Since(began).Milliseconds(), step.name)
	}
	fmt.Println("the stack works")
	return nil
}
