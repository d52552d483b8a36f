package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var processApplets = map[string]applet{
	"ps": ps, "kill": func(args []string) error { return kill(os.Stdout, args) }, "pgrep": pgrep, "pkill": pgrep, "pidof": pidof,
	"sleep": sleep, "timeout": timeout, "nohup": nohup, "env": env, "printenv": printenv, "which": which, "nproc": nproc,
	"time": timed, "setsid": setsid,
}

type process struct {
	pid, ppid, uid int
	state, comm    string
	cmdline        string
	rss            int64 // KiB
	cpu            time.Duration
}

func processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it ended meanwhile
		}
		// The name is in brackets and may hold anything.
		open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
		f := strings.Fields(string(stat[end+1:]))
		if open < 0 || end < open || len(f) < 22 {
			continue
		}
		p := process{pid: pid, state: f[0], comm: string(stat[open+1 : end])}
		p.ppid, _ = strconv.Atoi(f[1])
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		p.cpu = time.Duration(user+system) * 10 * time.Millisecond
		pages, _ := strconv.ParseInt(f[21], 10, 64)
		p.rss = pages * int64(os.Getpagesize()) / 1024
		var st unix.Stat_t
		if unix.Stat("/proc/"+e.Name(), &st) == nil {
			p.uid = int(st.Uid)
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		p.cmdline = strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
		if p.cmdline == "" {
			p.cmdline = "[" + p.comm + "]"
		}
		out = append(out, p)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].pid < out[j].pid })
	return out, nil
}

// ps shows every process, in the columns of ps aux or those asked for with -o.
func ps(args []string) error {
	columns := "user,pid,ppid,rss,stat,time,args"
	title := true
	for i, a := range args {
		if strings.HasPrefix(a, "-o") || a == "o" {
			columns = strings.TrimPrefix(strings.TrimPrefix(a, "-"), "o")
			if columns == "" && i+1 < len(args) {
				columns = args[i+1]
			}
		}
	}
	all, err := processes()
	if err != nil {
		return err
	}
	var head []string
	var names []string
	for c := range strings.SplitSeq(columns, ",") {
		name, shown, renamed := strings.Cut(c, "=")
		if !renamed {
			shown = strings.ToUpper(name)
		}
		title = title && !(renamed && shown == "")
		names, head = append(names, name), append(head, shown)
	}
	var rows [][]string
	if title {
		rows = append(rows, head)
	}
	for _, p := range all {
		cells := map[string]string{
			"user": userName(p.uid), "uid": fmt.Sprint(p.uid), "pid": fmt.Sprint(p.pid), "ppid": fmt.Sprint(p.ppid), "rss": fmt.Sprint(p.rss),
			"stat": p.state, "s": p.state, "time": fmt.Sprintf("%02d:%02d", int(p.cpu.Minutes()), int(p.cpu.Seconds())%60),
			"args": p.cmdline, "command": p.cmdline, "cmd": p.cmdline, "comm": p.comm,
		}
		var r []string
		for _, name := range names {
			cell, ok := cells[name]
			if !ok {
				return usage("%s: unknown column", name)
			}
			r = append(r, cell)
		}
		rows = append(rows, r)
	}
	printTable(os.Stdout, rows, false)
	return nil
}

func kill(out io.Writer, args []string) error {
	sig := syscall.SIGTERM
	if len(args) > 0 && args[0] == "-l" {
		for n := syscall.Signal(1); n < 32; n++ {
			fmt.Fprintf(out, "%2d %s\n", int(n), unix.SignalName(n))
		}
		return nil
	}
	if len(args) > 1 && strings.HasPrefix(args[0], "-") && args[0] != "--" {
		name := args[0][1:]
		args = args[1:]
		if name == "s" || name == "n" {
			name, args = args[0], args[1:]
		}
		var ok bool
		if sig, ok = signalNumber(name); !ok {
			return usage("%s: unknown signal", name)
		}
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return usage("kill [-SIGNAL] PID...")
	}
	return each("kill", args, func(arg string) error {
		pid, err := strconv.Atoi(arg)
		if err != nil {
			return usage("%s: no process id", arg)
		}
		if err := syscall.Kill(pid, sig); err != nil {
			return fmt.Errorf("(%d): %w", pid, err)
		}
		return nil
	})
}

// pgrep is also pkill, by the name it is called by.
func pgrep(args []string) error {
	killing := slices.ContainsFunc(os.Args[:min(2, len(os.Args))], func(a string) bool { return strings.HasSuffix(a, "pkill") })
	sig := syscall.SIGTERM
	if killing && len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		if s, ok := signalNumber(args[0][1:]); ok {
			sig, args = s, args[1:]
		}
	}
	o, err := parse("flxnoaciu:P:v", args)
	if err != nil {
		return err
	}
	if len(o.rest) > 1 || len(o.rest) == 0 && len(o.value) == 0 {
		return usage("pgrep [-flxnoacv] [-u USER] [-P PARENT] PATTERN")
	}
	pattern := strings.Join(o.rest, "")
	if o.has("x") {
		pattern = "^(?:" + pattern + ")$"
	}
	if o.has("i") {
		pattern = "(?i)" + pattern
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return usage("%s: bad pattern", pattern)
	}
	all, err := processes()
	if err != nil {
		return err
	}
	var found []process
	for _, p := range all {
		text := p.comm
		if o.has("f") {
			text = p.cmdline
		}
		if p.pid == os.Getpid() || re.MatchString(text) == o.has("v") ||
			o.has("u") && userName(p.uid) != o.value["u"] && strconv.Itoa(p.uid) != o.value["u"] ||
			o.has("P") && strconv.Itoa(p.ppid) != o.value["P"] {
			continue
		}
		found = append(found, p)
	}
	switch {
	case len(found) == 0:
		if o.has("c") {
			fmt.Println(0)
		}
		return exitCode(1)
	case o.has("n"):
		found = found[len(found)-1:]
	case o.has("o"):
		found = found[:1]
	case o.has("c"):
		fmt.Println(len(found))
		return nil
	}
	for _, p := range found {
		switch {
		case killing:
			if err := syscall.Kill(p.pid, sig); err != nil {
				return fmt.Errorf("(%d): %w", p.pid, err)
			}
		case o.has("a"):
			fmt.Println(p.pid, p.cmdline)
		case o.has("l"):
			fmt.Println(p.pid, p.comm)
		default:
			fmt.Println(p.pid)
		}
	}
	return nil
}

func pidof(args []string) error {
	all, err := processes()
	if err != nil {
		return err
	}
	var pids []string
	for _, p := range slices.Backward(all) {
		if slices.Contains(args, p.comm) && p.pid != os.Getpid() {
			pids = append(pids, strconv.Itoa(p.pid))
		}
	}
	if len(pids) == 0 {
		return exitCode(1)
	}
	fmt.Println(strings.Join(pids, " "))
	return nil
}

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
