package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// callStatus is a call that does nothing but leave its argument as the status.
const callStatus = "__tiny_status"

// stateFile is where a background process finds its program: descriptor 3, a file in memory.
const stateFile = "/proc/self/fd/3"

// job is a background process.
type job struct {
	pid    int
	source string
	done   chan struct{}
	status int // once done
}

func status(code int) []string {
	if code == 0 {
		return []string{"true"}
	}
	return []string{callStatus, strconv.Itoa(code)}
}

// call sees every simple command before it runs and may put another in its place.
func (s *session) call(ctx context.Context, args []string) ([]string, error) {
	hc := interp.HandlerCtx(ctx)
	replace := s.replace
	s.replace = false
	if action := s.traps.next(); action != "" {
		return []string{"eval", action + "\n" + quote(args)}, nil
	}
	switch args[0] {
	case callBackground:
		return s.startJob(hc, args[1]), nil
	case "wait":
		return s.wait(args[1:]), nil
	case "jobs":
		return s.listJobs(hc.Stdout), nil
	case "trap":
		return s.trap(hc.Stdout, args), nil
	case "kill":
		code := reply(hc.Stderr, "kill", kill(hc.Stdout, s.jobPIDs(args[1:])))
		if !s.traps.empty() && slices.Contains(args, strconv.Itoa(os.Getpid())) {
			s.traps.settle()
		}
		return status(code), nil
	case "umask":
		return status(reply(hc.Stderr, "umask", umask(hc.Stdout, args[1:]))), nil
	case "ulimit":
		return status(reply(hc.Stderr, "ulimit", ulimit(hc.Stdout, args[1:]))), nil
	case "hash", "disown":
		return status(0), nil
	}
	if replace {
		s.become(hc, args)
	}
	return args, nil
}

func reply(stderr io.Writer, name string, err error) int {
	switch err := err.(type) {
	case nil:
		return 0
	case exitCode:
		return int(err)
	case usageError:
		fmt.Fprintf(stderr, "%s: %s\n", name, err)
		return 2
	}
	fmt.Fprintf(stderr, "%s: %s\n", name, plain(err))
	return 1
}

func quote(args []string) string {
	out := make([]string, len(args))
	for i, arg := range args {
		q, err := syntax.Quote(arg, syntax.LangBash)
		if err != nil { // only a null byte, which no argument has
			q = "''"
		}
		out[i] = q
	}
	return strings.Join(out, " ")
}

// become makes the process the command, when it is an external one whose streams are real files. When it
// returns, nothing has happened.
func (s *session) become(hc interp.HandlerContext, args []string) {
	if args[0] == "exec" {
		args = args[1:]
	}
	if len(args) == 0 {
		takeStreams(hc) // exec with nothing but redirections
		return
	}
	if s.runner.Funcs[args[0]] != nil || interp.IsBuiltin(args[0]) {
		return
	}
	path, err := interp.LookPathDir(hc.Dir, hc.Env, args[0])
	if err != nil {
		return
	}
	if os.Chdir(hc.Dir) != nil || !takeStreams(hc) {
		return
	}
	syscall.Exec(path, args, environment(hc))
}

// takeStreams makes the interpreter's streams those of the process.
func takeStreams(hc interp.HandlerContext) bool {
	var files [3]int
	for i, stream := range []any{hc.Stdin, hc.Stdout, hc.Stderr} {
		f, ok := stream.(*os.File)
		if !ok || f == nil {
			return false
		}
		// Move it up first: descriptor 1 may be what another of the three is to become.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 10)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		files[i] = fd
	}
	for i, fd := range files {
		if unix.Dup3(fd, i, 0) != nil {
			return false
		}
	}
	return true
}

func environment(hc interp.HandlerContext) []string {
	set := map[string]string{}
	for name, v := range hc.Env.Each {
		delete(set, name)
		if v.IsSet() && v.Exported {
			set[name] = v.String()
		}
	}
	out := make([]string, 0, len(set))
	for _, name := range slices.Sorted(maps.Keys(set)) {
		out = append(out, name+"="+set[name])
	}
	return out
}

// exec runs external commands: ours first, then the interpreter's way, with the messages of a shell.
func (s *session) exec(next interp.ExecHandlerFunc) interp.ExecHandlerFunc {
	return func(ctx context.Context, args []string) error {
		if args[0] == callStatus && len(args) == 2 {
			code, _ := strconv.Atoi(args[1])
			return interp.ExitStatus(code)
		}
		hc := interp.HandlerCtx(ctx)
		if _, err := interp.LookPathDir(hc.Dir, hc.Env, args[0]); err != nil {
			switch msg := err.Error(); {
			case strings.Contains(msg, "permission denied"), strings.Contains(msg, "is a directory"):
				fmt.Fprintf(hc.Stderr, "%s: %s: %s\n", s.name, args[0], msg)
				return interp.ExitStatus(126)
			case strings.Contains(args[0], "/"):
				fmt.Fprintf(hc.Stderr, "%s: %s: No such file or directory\n", s.name, args[0])
			default:
				fmt.Fprintf(hc.Stderr, "%s: %s: command not found\n", s.name, args[0])
			}
			return interp.ExitStatus(127)
		}
		return next(ctx, args)
	}
}

// startJob starts a shell of its own for a background statement and hands it variables, functions and parameters.
func (s *session) startJob(hc interp.HandlerContext, source string) []string {
	memory, err := unix.MemfdCreate("job", unix.MFD_CLOEXEC)
	if err != nil {
		return status(reply(hc.Stderr, s.name, fmt.Errorf("start background job: %w", err)))
	}
	f := os.NewFile(uintptr(memory), "job")
	defer f.Close()
	if _, err := f.WriteString(s.state(hc) + source + "\n"); err != nil {
		return status(reply(hc.Stderr, s.name, fmt.Errorf("start background job: %w", err)))
	}
	cmd := exec.Command("/proc/self/exe", stateFile)
	cmd.Args[0] = "sh"
	cmd.Dir, cmd.Env = hc.Dir, environment(hc)
	cmd.Stdout, cmd.Stderr = hc.Stdout, hc.Stderr
	if s.interactive {
		cmd.Stdin = hc.Stdin
	}
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		return status(reply(hc.Stderr, s.name, fmt.Errorf("start background job: %w", err)))
	}
	j := &job{pid: cmd.Process.Pid, source: source, done: make(chan struct{})}
	go func() {
		defer close(j.done)
		cmd.Wait()
		if j.status = cmd.ProcessState.ExitCode(); j.status < 0 {
			j.status = 128 + int(cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs = append(s.jobs, j)
	if s.interactive {
		fmt.Fprintf(hc.Stderr, "[%d] %d\n", len(s.jobs), j.pid)
	}
	return []string{"eval", fmt.Sprintf("%s=%d", varLast, j.pid)}
}

// state is a program that puts another shell into the state of this one.
func (s *session) state(hc interp.HandlerContext) string {
	var b strings.Builder
	vars := map[string]string{}
	for name, v := range hc.Env.Each {
		delete(vars, name)
		if !v.IsSet() || v.Exported || v.ReadOnly {
			continue // exported ones travel in the environment
		}
		switch text := v.String(); {
		case v.List != nil:
			vars[name] = "(" + quote(v.List) + ")"
		case v.Map == nil:
			vars[name] = quote([]string{text})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		if syntax.ValidName(name) && name != "IFS" && name != "OPTIND" && name != "UID" && name != "EUID" && name != "GID" {
			fmt.Fprintf(&b, "%s=%s\n", name, vars[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.functions)) {
		if s.runner.Funcs[name] != nil {
			b.WriteString(s.functions[name] + "\n")
		}
	}
	fmt.Fprintf(&b, "set -- %s\n", quote(s.runner.Params))
	return b.String()
}

// wait waits for all jobs or the named ones. A signal with a trap ends it early.
func (s *session) wait(args []string) []string {
	s.mu.Lock()
	jobs := slices.Clone(s.jobs)
	s.mu.Unlock()
	if len(args) > 0 {
		var some []*job
		for _, arg := range s.jobPIDs(args) {
			i := slices.IndexFunc(jobs, func(j *job) bool { return strconv.Itoa(j.pid) == arg })
			if i < 0 {
				return status(127)
			}
			some = append(some, jobs[i])
		}
		jobs = some
	}
	code := 0
	for _, j := range jobs {
		select {
		case <-j.done:
			code = j.status
		case <-s.traps.arrived:
			return []string{"eval", fmt.Sprintf("%s\n%s %d", s.traps.next(), callStatus, 128+int(s.traps.last))}
		}
	}
	if len(args) == 0 {
		code = 0
	}
	return status(code)
}

// jobPIDs turns %1 into the process id of job 1.
func (s *session) jobPIDs(args []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Clone(args)
	for i, arg := range out {
		n, err := strconv.Atoi(strings.TrimPrefix(arg, "%"))
		if strings.HasPrefix(arg, "%") && err == nil && n > 0 && n <= len(s.jobs) {
			out[i] = strconv.Itoa(s.jobs[n-1].pid)
		}
	}
	return out
}

func (s *session) listJobs(out io.Writer) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, j := range s.jobs {
		select {
		case <-j.done:
		default:
			fmt.Fprintf(out, "[%d]  Running  %s &\n", i+1, j.source)
		}
	}
	return status(0)
}

func umask(out io.Writer, args []string) error {
	if len(args) == 0 {
		old := unix.Umask(0)
		unix.Umask(old)
		fmt.Fprintf(out, "%04o\n", old)
		return nil
	}
	mask, err := strconv.ParseUint(args[0], 8, 12)
	if err != nil {
		return usage("%s: octal mask expected", args[0])
	}
	unix.Umask(int(mask))
	return nil
}

// limits are the resources that ulimit knows, with the size of its unit.
var limits = map[string]struct {
	resource int
	unit     uint64
}{
	"c": {unix.RLIMIT_CORE, 512}, "d": {unix.RLIMIT_DATA, 1024}, "f": {unix.RLIMIT_FSIZE, 512}, "n": {unix.RLIMIT_NOFILE, 1},
	"s": {unix.RLIMIT_STACK, 1024}, "t": {unix.RLIMIT_CPU, 1}, "u": {unix.RLIMIT_NPROC, 1}, "v": {unix.RLIMIT_AS, 1024},
}

func ulimit(out io.Writer, args []string) error {
	which, soft, hard := "f", true, true
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		for _, c := range args[0][1:] {
			switch c {
			case 'S':
				hard = false
			case 'H':
				soft = false
			default:
				which = string(c)
			}
		}
		args = args[1:]
	}
	l, ok := limits[which]
	if !ok {
		return usage("-%s: unknown limit", which)
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(l.resource, &lim); err != nil {
		return err
	}
	if len(args) == 0 {
		value := lim.Cur
		if !soft {
			value = lim.Max
		}
		if value == unix.RLIM_INFINITY {
			fmt.Fprintln(out, "unlimited")
		} else {
			fmt.Fprintln(out, value/l.unit)
		}
		return nil
	}
	value := uint64(unix.RLIM_INFINITY)
	if args[0] != "unlimited" {
		n, err := strconv.ParseUint(args[0], 10, 48)
		if err != nil {
			return usage("%s: number expected", args[0])
		}
		value = n * l.unit
	}
	if soft {
		lim.Cur = value
	}
	if hard {
		lim.Max = value
	}
	return unix.Setrlimit(l.resource, &lim)
}
