// Command guest is what runs inside the machines of the conformance suite: one static program that is the first
// process and every tool the suite asks for. It prints results on standard output and nothing else.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	countFile = "/count"
	port      = ":7007"
	tick      = 5 * time.Millisecond
)

// Request is a command sent to the first process over TCP; Reply its result.
type Request struct {
	Argv []string `json:"argv"`
}

// Reply is the answer to a Request.
type Reply struct {
	Out  string `json:"out"`
	Code int    `json:"code"`
}

var verbs = map[string]func(args []string) error{
	"init": initProcess, "args": printArgs, "eat": eat, "bomb": bomb, "fill": fill, "spin": spin, "cat": cat,
	"write": write, "sleep": sleep, "exit": exit, "dial": dial, "cpus": cpus, "hostname": hostname, "uid": uid,
	"raise": raise, "remount": remount, "wild": wild, "as": as, "fetch": fetch,
	"send": send, "pour": pour, "lonely": lonely, "panic": kernelPanic, "litter": litter, "tree": tree,
}

func main() {
	if len(os.Args) < 2 || verbs[os.Args[1]] == nil {
		fmt.Println("unknown verb")
		os.Exit(64)
	}
	if err := verbs[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// initProcess counts in memory and writes each number to a file, takes zombies away, and runs commands for whoever
// connects.
func initProcess(args []string) error {
	orphans := make(chan os.Signal, 16)
	signal.Notify(orphans, syscall.SIGCHLD)
	var busy atomic.Int64 // commands of our own, which exec.Cmd waits for
	go func() {
		for range orphans {
			for busy.Load() == 0 {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}()
	if l, err := net.Listen("tcp", port); err == nil {
		go serve(l, &busy)
	}
	_ = os.WriteFile("/args", []byte(strings.Join(args, "\n")), 0o644)
	_ = os.WriteFile("/env", []byte(strings.Join(os.Environ(), "\n")), 0o644)
	f, err := os.Create(countFile)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		if _, err := f.WriteAt(fmt.Appendf(nil, "%-20d", n), 0); err != nil {
			return err
		}
		time.Sleep(tick)
	}
}

func serve(l net.Listener, busy *atomic.Int64) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var q Request
			if json.NewDecoder(bufio.NewReader(c)).Decode(&q) != nil || len(q.Argv) == 0 {
				return
			}
			busy.Add(1)
			defer busy.Add(-1)
			cmd := exec.Command(q.Argv[0], q.Argv[1:]...)
			out, err := cmd.CombinedOutput()
			r := Reply{Out: string(out)}
			if ee := (*exec.ExitError)(nil); errors.As(err, &ee) {
				r.Code = ee.ExitCode()
			} else if err != nil {
				r = Reply{Out: err.Error(), Code: 127}
			}
			_ = json.NewEncoder(c).Encode(r)
		}()
	}
}

func printArgs(args []string) error {
	_, err := fmt.Println(strings.Join(args, "|"))
	return err
}

// eat touches so many MiB and keeps them.
func eat(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var kept [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = byte(i>>12) | 1
		}
		kept = append(kept, b)
	}
	fmt.Println("ate", len(kept))
	if len(args) > 1 {
		return sleep(args[1:])
	}
	return nil
}

// bomb starts as many sleeping processes as it is allowed, at most so many, says how many, and ends them.
func bomb(args []string) error {
	most, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var started []*os.Process
	var refused error
	for len(started) < most {
		p, err := os.StartProcess("/proc/self/exe", []string{"guest", "sleep", "60"}, &os.ProcAttr{})
		if err != nil {
			refused = err
			break
		}
		started = append(started, p)
	}
	fmt.Println("started", len(started), "refused", errors.Is(refused, syscall.EAGAIN), refused)
	for _, p := range started {
		_ = p.Kill()
	}
	for _, p := range started {
		_, _ = p.Wait()
	}
	return nil
}

// wild is a fork bomb without any restraint.
func wild([]string) error {
	for {
		if _, err := os.StartProcess("/proc/self/exe", []string{"guest", "wild"}, &os.ProcAttr{}); err != nil {
			time.Sleep(time.Millisecond)
		}
	}
}

// fill writes a file until it cannot, and says why and how many MiB there were.
func fill(args []string) error {
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i * 7)
	}
	total := 0
	for err == nil {
		var n int
		n, err = f.Write(b)
		total += n
	}
	_ = f.Sync() // the host counts what has reached the disk
	fmt.Println("wrote", total>>20, "full", errors.Is(err, syscall.ENOSPC), err)
	return nil
}

// spin keeps so many threads busy for so many milliseconds.
func spin(args []string) error {
	n, _ := strconv.Atoi(args[0])
	ms, _ := strconv.Atoi(args[1])
	end := time.Now().Add(time.Duration(ms) * time.Millisecond)
	done := make(chan struct{})
	for range n {
		go func() {
			for time.Now().Before(end) {
			}
			done <- struct{}{}
		}()
	}
	for range n {
		<-done
	}
	return nil
}

func cat(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, f)
	return err
}

func write(args []string) error { return os.WriteFile(args[0], []byte(args[1]), 0o644) }

func sleep(args []string) error {
	s, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		return err
	}
	time.Sleep(time.Duration(s * float64(time.Second)))
	return nil
}

func exit(args []string) error {
	code, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

func dial(args []string) error {
	c, err := net.DialTimeout("tcp", args[0], 2*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Println("connected", c.LocalAddr())
	return nil
}

// fetch reads all there is and says how much and what.
func fetch(args []string) error {
	c, err := net.DialTimeout("tcp", args[0], 2*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	sum := crc32.NewIEEE()
	n, err := io.Copy(sum, c)
	fmt.Println("fetched", n, sum.Sum32())
	return err
}

// send writes so many MiB.
func send(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", args[0], 2*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i>>8 ^ i)
	}
	for range n {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// lonely ends with 42 where there is a loopback device, nothing else, and no way out.
func lonely([]string) error {
	if _, err := net.DialTimeout("tcp", "1.1.1.1:80", 2*time.Second); !errors.Is(err, syscall.ENETUNREACH) {
		os.Exit(1)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(2)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err != nil {
		os.Exit(3)
	}
	if all, err := net.Interfaces(); err != nil || len(all) != 1 {
		os.Exit(4)
	}
	os.Exit(42)
	return nil
}

// kernelPanic ends the guest's kernel, where it has one of its own.
func kernelPanic([]string) error {
	time.Sleep(200 * time.Millisecond) // until whoever started it has heard so
	return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
}

func cpus([]string) error {
	fmt.Println(runtime.NumCPU())
	return nil
}

func hostname([]string) error {
	h, err := os.Hostname()
	fmt.Println(h)
	return err
}

func uid([]string) error {
	fmt.Println(os.Getuid(), os.Geteuid())
	return nil
}

// as becomes another user for good and then runs a program.
func as(args []string) error {
	id, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	if err := syscall.Setgid(id); err != nil {
		return err
	}
	if err := syscall.Setuid(id); err != nil {
		return err
	}
	return syscall.Exec(args[1], args[1:], os.Environ())
}

// pour writes so many MiB and leaves a process behind that goes on writing.
func pour(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	b := make([]byte, 1<<20)
	for range n {
		if _, err := os.Stdout.Write(b); err != nil {
			return err
		}
	}
	if len(args) == 1 {
		_, err = os.StartProcess("/proc/self/exe", []string{"guest", "pour", "1048576", "more"},
			&os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
	}
	return err
}

// raise ends the first process by a signal.
func raise([]string) error { return syscall.Kill(1, syscall.SIGKILL) }

// remount tries, as root, to lift the process limit through a control group file system of its own.
func remount([]string) error {
	for _, fs := range []string{"cgroup2", "cgroup"} {
		dir, err := os.MkdirTemp("/", "cg")
		if err != nil {
			return err
		}
		if err := syscall.Mount("none", dir, fs, 0, ""); err != nil {
			fmt.Println(fs, "mount:", err)
			continue
		}
		for _, p := range []string{"/pids.max", "/guest/pids.max", "/pids/pids.max"} {
			fmt.Println(fs, p, os.WriteFile(dir+p, []byte("max"), 0))
		}
		fmt.Println(fs, "leave:", os.WriteFile(dir+"/../cgroup.procs", []byte("0"), 0))
	}
	for _, p := range []string{"/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/guest/pids.max"} {
		fmt.Println(p, os.WriteFile(p, []byte("max"), 0))
	}
	return nil
}
