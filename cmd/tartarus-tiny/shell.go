package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// shellOptions is what the command line of a shell says.
type shellOptions struct {
	command     *string // -c
	login       bool    // -l, or a name with a dash in front
	interactive bool
	set         []string // for set: -e, -x, -o pipefail, ...
	name        string   // $0
	params      []string
}

func parseShellArgs(args []string) (shellOptions, error) {
	o := shellOptions{name: "sh", login: strings.HasPrefix(os.Args[0], "-")}
	wantsCommand := false
flags:
	for len(args) > 0 {
		arg := args[0]
		switch {
		case arg == "--login":
			o.login = true
		case arg == "--norc" || arg == "--noprofile" || arg == "--posix":
		case arg == "--" || arg == "-":
			args = args[1:]
			break flags
		case strings.HasPrefix(arg, "--"):
			return o, usage("%s: unknown option", arg)
		case len(arg) < 2 || arg[0] != '-' && arg[0] != '+':
			break flags
		default:
			for i, c := range arg[1:] {
				switch c {
				case 'c':
					wantsCommand = true
				case 'l':
					o.login = true
				case 'i':
					o.interactive = true
				case 's':
				case 'o':
					if len(args) < 2 || i != len(arg)-2 {
						return o, usage("-o needs the name of an option")
					}
					o.set = append(o.set, arg[:1]+"o", args[1])
					args = args[1:]
				default:
					o.set = append(o.set, arg[:1]+string(c))
				}
			}
		}
		args = args[1:]
	}
	if wantsCommand {
		if len(args) == 0 {
			return o, usage("-c needs a command")
		}
		o.command, args = &args[0], args[1:]
		if len(args) > 0 {
			o.name, args = args[0], args[1:]
		}
	}
	o.params = args
	return o, nil
}

// session is one shell.
//
// What the interpreter does not have, because it lives inside one Go process, is added around it: programs are rewritten
// before they run ($0, $$, $! and background statements), and calls of some builtins are answered in calls.go.
type session struct {
	shellOptions
	runner *interp.Runner
	parser *syntax.Parser
	traps  *trapTable

	mu        sync.Mutex // a pipeline calls from several goroutines
	jobs      []*job
	functions map[string]string // source of each, by name

	// replace says that the next call may take the place of this process instead of being its child: it is the last
	// thing the shell does, or the word exec is before it.
	replace bool
}

func shell(args []string) error {
	o, err := parseShellArgs(args)
	if err != nil {
		return err
	}
	s := &session{shellOptions: o, functions: map[string]string{}, traps: newTrapTable(), parser: syntax.NewParser(syntax.Variant(syntax.LangBash))}
	var script io.Reader
	switch {
	case s.command != nil:
		script = strings.NewReader(*s.command)
	case len(s.params) > 0:
		b, err := os.ReadFile(s.params[0])
		if err != nil {
			fmt.Fprintln(os.Stderr, "sh:", plain(err))
			return exitCode(127)
		}
		if line, _, _ := bytes.Cut(b[:min(len(b), 512)], []byte("\n")); bytes.IndexByte(line, 0) >= 0 {
			fmt.Fprintf(os.Stderr, "sh: %s: cannot execute binary file\n", s.params[0])
			return exitCode(126)
		}
		script = bytes.NewReader(b)
		s.name, s.params = s.params[0], s.params[1:]
		if s.name == stateFile {
			unix.CloseOnExec(3)
		}
	default:
		s.interactive = s.interactive || term.IsTerminal(0) && term.IsTerminal(2)
	}
	if err := s.start(); err != nil {
		return err
	}
	ctx := context.Background()
	if s.login {
		for _, profile := range []string{"/etc/profile", filepath.Join(os.Getenv("HOME"), ".profile")} {
			s.source(ctx, profile)
			if s.runner.Exited() {
				return s.finish(ctx, nil)
			}
		}
	}
	switch {
	case script != nil:
		err = s.script(ctx, script)
	case s.interactive:
		s.source(ctx, filepath.Join(os.Getenv("HOME"), ".shrc"))
		err = s.converse(ctx)
	default:
		err = s.stream(ctx, s.parser.StmtsSeq(os.Stdin))
	}
	return s.finish(ctx, err)
}

func (s *session) start() error {
	if os.Getenv("PATH") == "" {
		os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	r, err := interp.New(
		interp.StdIO(os.Stdin, os.Stdout, os.Stderr),
		interp.CallHandler(s.call),
		interp.ExecHandlers(s.exec),
		interp.Interactive(s.interactive),
	)
	if err != nil {
		return usage("%s", err)
	}
	s.runner = r
	prog, err := s.parser.Parse(strings.NewReader(fmt.Sprintf("%s=%s %s=%d", varName, quote([]string{s.name}), varPID, os.Getpid())), "")
	if err != nil {
		return err
	}
	if err := r.Run(context.Background(), prog.Stmts[0]); err != nil {
		return err
	}
	// Only now, so that -x does not show the line before.
	if err := interp.Params(append(append(slices.Clone(s.set), "--"), s.params...)...)(r); err != nil {
		return usage("%s", err)
	}
	return nil
}

// finish runs what is left to run at the end of a shell and turns err into an exit code.
func (s *session) finish(ctx context.Context, err error) error {
	var status interp.ExitStatus
	var parse syntax.ParseError
	var lang syntax.LangError
	code := 0
	switch {
	case err == nil:
	case errors.As(err, &status):
		code = int(status)
	case errors.As(err, &parse), errors.As(err, &lang):
		fmt.Fprintln(os.Stderr, err)
		code = 2
	default:
		return err
	}
	if action := s.traps.next(); action != "" {
		s.runAction(ctx, action)
	}
	if !s.runner.Exited() && !s.traps.empty() {
		// The interpreter fires the trap on EXIT for a program that exits.
		prog, _ := s.parser.Parse(strings.NewReader(fmt.Sprintf("exit %d", code)), "")
		if err := s.runner.Run(ctx, prog); errors.As(err, &status) {
			code = int(status)
		}
	}
	if code == 0 {
		return nil
	}
	return exitCode(code)
}

func (s *session) runAction(ctx context.Context, action string) {
	prog, err := s.parser.Parse(strings.NewReader(action), "trap")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	for _, stmt := range prog.Stmts {
		s.rewrite(stmt)
		if s.runner.Run(ctx, stmt); s.runner.Exited() {
			return
		}
	}
}

// source runs a profile, which need not be there.
func (s *session) source(ctx context.Context, name string) {
	f, err := os.Open(name)
	if err != nil {
		return
	}
	defer f.Close()
	prog, err := s.parser.Parse(f, name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	for _, stmt := range prog.Stmts {
		s.rewrite(stmt)
		s.runner.Run(ctx, stmt)
		if s.runner.Exited() {
			return
		}
	}
}

// script runs a whole program.
func (s *session) script(ctx context.Context, r io.Reader) error {
	prog, err := s.parser.Parse(r, s.name)
	if err != nil {
		return err
	}
	var last error
	keep := slices.ContainsFunc(prog.Stmts, fed)
	for i, stmt := range prog.Stmts {
		s.rewrite(stmt)
		s.replace = !keep && replaceable(stmt, i == len(prog.Stmts)-1 && s.traps.empty())
		last = s.runner.Run(ctx, stmt)
		s.replace = false
		if s.runner.Exited() {
			return last
		}
	}
	return last
}

// stream runs statements as they arrive.
func (s *session) stream(ctx context.Context, stmts func(func(*syntax.Stmt, error) bool)) (last error) {
	for stmt, err := range stmts {
		if err != nil {
			return err
		}
		s.rewrite(stmt)
		last = s.runner.Run(ctx, stmt)
		if s.runner.Exited() {
			return last
		}
	}
	return last
}

// converse reads lines from a terminal or, with -i, from whatever stdin is.
func (s *session) converse(ctx context.Context) (last error) {
	stop := s.ignoreKeys()
	defer stop()
	in := newLineReader(s)
	for stmts, err := range s.parser.InteractiveSeq(in) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return interp.ExitStatus(2)
		}
		if s.parser.Incomplete() {
			in.more = true
			continue
		}
		in.more = false
		for _, stmt := range stmts {
			s.rewrite(stmt)
			last = s.runner.Run(ctx, stmt)
			if s.runner.Exited() {
				return last
			}
		}
	}
	return last
}
