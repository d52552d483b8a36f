package main

import (
	"fmt"
	"io"
	"os"
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
