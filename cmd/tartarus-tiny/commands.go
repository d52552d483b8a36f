package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// duration reads 1.5, 2m, 1h, 1d and infinity.
func duration(s string) (time.Duration, error) {
	if s == "infinity" || s == "inf" {
		return 1<<63 - 1, nil
	}
	unit := time.Second
	if s != "" {
		if u, ok := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}[s[len(s)-1]]; ok {
			unit, s = u, s[:len(s)-1]
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n < 0 {
		return 0, usage("%q: bad time", s)
	}
	if n*float64(unit) > 1<<62 {
		return 1<<63 - 1, nil
	}
	return time.Duration(n * float64(unit)), nil
}

func sleep(args []string) error {
	if len(args) == 0 {
		return usage("sleep TIME...")
	}
	var total time.Duration
	for _, a := range args {
		d, err := duration(a)
		if err != nil {
			return err
		}
		if total += d; total < 0 {
			total = 1<<63 - 1
		}
	}
	time.Sleep(total)
	return nil
}

// runCommand runs argv in the foreground, passes signals on, and ends with its code.
func runCommand(ctx context.Context, argv []string, prepare func(*exec.Cmd)) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if prepare != nil {
		prepare(cmd)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, plain(err))
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			return exitCode(127)
		}
		return exitCode(126)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				cmd.Process.Signal(s)
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	if cmd.ProcessState == nil {
		return err
	}
	switch ws := cmd.ProcessState.Sys().(syscall.WaitStatus); {
	case ws.Signaled():
		return exitCode(128 + int(ws.Signal()))
	case ws.ExitStatus() != 0:
		return exitCode(ws.ExitStatus())
	}
	return nil
}

// replace makes this process argv.
func replace(argv []string, environ []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: No such file or directory\n", argv[0])
		return exitCode(127)
	}
	err = syscall.Exec(path, argv, environ)
	fmt.Fprintf(os.Stderr, "%s: %s\n", argv[0], err)
	return exitCode(126)
}

func timeout(args []string) error {
	o, err := parseLeading("s:k:vp", args, "signal=s", "kill-after=k", "foreground=p", "preserve-status=p")
	if err != nil {
		return err
	}
	if len(o.rest) < 2 {
		return usage("timeout [-s SIGNAL] [-k TIME] TIME COMMAND [ARG]...")
	}
	limit, err := duration(o.rest[0])
	if err != nil {
		return err
	}
	sig, ok := syscall.SIGTERM, true
	if o.has("s") {
		if sig, ok = signalNumber(o.value["s"]); !ok {
			return usage("%s: unknown signal", o.value["s"])
		}
	}
	grace := time.Duration(0) // none: never killed harder
	if o.has("k") {
		if grace, err = duration(o.value["k"]); err != nil {
			return err
		}
	}
	ctx := context.Background()
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err = runCommand(ctx, o.rest[1:], func(cmd *exec.Cmd) {
		cmd.Cancel = func() error { return cmd.Process.Signal(sig) }
		cmd.WaitDelay = grace
	})
	if ctx.Err() != nil {
		return exitCode(124)
	}
	return err
}

func nohup(args []string) error {
	if len(args) == 0 {
		return usage("nohup COMMAND [ARG]...")
	}
	signal.Ignore(syscall.SIGHUP)
	return replace(args, os.Environ())
}

func setsid(args []string) error {
	if len(args) == 0 {
		return usage("setsid COMMAND [ARG]...")
	}
	if _, err := unix.Setsid(); err == nil {
		return replace(args, os.Environ())
	}
	// A group leader cannot; its child can.
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

func env(args []string) error {
	o, err := parseLeading("iu:C:0", args, "ignore-environment=i", "unset=u", "chdir=C")
	if err != nil {
		return err
	}
	environ := os.Environ()
	if o.has("i") {
		environ = nil
	}
	set := func(name string, entry ...string) {
		environ = slices.DeleteFunc(environ, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		environ = append(environ, entry...)
	}
	if o.has("u") {
		set(o.value["u"])
	}
	rest := o.rest
	for len(rest) > 0 && strings.Contains(rest[0], "=") {
		name, _, _ := strings.Cut(rest[0], "=")
		set(name, rest[0])
		rest = rest[1:]
	}
	if len(rest) == 0 {
		return printLines(environ)
	}
	if dir := o.value["C"]; dir != "" {
		if err := os.Chdir(dir); err != nil {
			return err
		}
	}
	for _, e := range environ {
		if p, ok := strings.CutPrefix(e, "PATH="); ok {
			os.Setenv("PATH", p)
		}
	}
	return replace(rest, environ)
}

func printenv(args []string) error {
	if len(args) == 0 {
		return printLines(os.Environ())
	}
	for _, name := range args {
		value, ok := os.LookupEnv(name)
		if !ok {
			return exitCode(1)
		}
		fmt.Println(value)
	}
	return nil
}

func which(args []string) error {
	o, err := parse("as", args)
	if err != nil {
		return err
	}
	var code error
	for _, name := range o.rest {
		p, err := exec.LookPath(name)
		if err != nil {
			code = exitCode(1)
			continue
		}
		fmt.Println(p)
	}
	return code
}

func nproc([]string) error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return err
	}
	fmt.Println(set.Count())
	return nil
}

func timed(args []string) error {
	if len(args) == 0 {
		return usage("time COMMAND [ARG]...")
	}
	start := time.Now()
	err := runCommand(context.Background(), args, nil)
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_CHILDREN, &u)
	fmt.Fprintf(os.Stderr, "real\t%.3fs\nuser\t%.3fs\nsys\t%.3fs\n", time.Since(start).Seconds(),
		time.Duration(u.Utime.Nano()).Seconds(), time.Duration(u.Stime.Nano()).Seconds())
	return err
}
