// Program stack runs the developer stack of docker-compose.yml by hand, where no Docker engine runs: the same processes with the same
// environment, read from that very file, so that the two cannot drift apart. With --smoke it puts the stack on free ports and in
// a folder of its own, uses it as a developer would, and takes it down.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stack:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("stack", flag.ContinueOnError)
	file := flags.String("file", "docker-compose.yml", "the compose file")
	dir := flags.String("dir", "data/stack", "folder of the stack; each volume is a folder in it")
	smoke := flags.Bool("smoke", false, "use the stack and take it down, on free ports and in a folder of its own")
	if err := flags.Parse(args); err != nil {
		return err
	}
	c, err := readCompose(*file, os.LookupEnv)
	if err != nil {
		return err
	}
	if *smoke {
		if *dir, err = os.MkdirTemp("", "tartarus-stack-"); err != nil {
			return err
		}
		defer os.RemoveAll(*dir)
	}
	s, err := newStack(c, *dir, *smoke)
	if err != nil {
		return err
	}
	return s.run(ctx, *smoke)
}

// startTime bounds the start of one process.
const startTime = 2 * time.Minute

// stack is the processes of a compose file on this host.
type stack struct {
	compose
	place
	bin   string
	group *errgroup.Group
	procs []*exec.Cmd
	logs  string
}

func newStack(c compose, dir string, free bool) (*stack, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	bin, err := filepath.Abs("bin/tartarus")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(bin); err != nil {
		return nil, fmt.Errorf("the program is not built (make build): %w", err)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("the agent needs root, as its container is privileged: use sudo")
	}
	s := &stack{compose: c, place: place{dir: dir, ports: map[string]int{}}, bin: bin, logs: filepath.Join(dir, "logs")}
	for _, sub := range []string{"redis", "minio", "olympus", "join", "hecatoncheir", "logs"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	if free {
		for _, port := range []string{"6379", "9000", "9001", "7300", "7301", "7302", "7443"} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			s.ports[port] = l.Addr().(*net.TCPAddr).Port
			_ = l.Close() // somebody else may take it: the start then says so
		}
	}
	return s, nil
}

// run starts everything in the order of the file's dependencies, and stops it in reverse.
func (s *stack) run(ctx context.Context, smoke bool) (err error) {
	group, ctx := errgroup.WithContext(ctx)
	s.group = group
	defer func() {
		for i := len(s.procs) - 1; i >= 0; i-- {
			stop(s.procs[i])
		}
		_ = s.group.Wait() // how they ended has been told
	}()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{{"redis", s.redis}, {"S3 store with its bucket", s.objects}, {"olympus", s.olympus}, {"join token", s.join}, {"hecatoncheir", s.hecatoncheir}} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("start %s: %w; logs are in %s", step.name, err, s.logs)
		}
		fmt.Printf("%8d ms  %s\n", time.Since(began).Milliseconds(), step.name)
	}
	if smoke {
		return s.smoke(ctx)
	}
	url := "http://127.0.0.1:" + s.port("7300")
	fmt.Printf("\nthe stack is up; Ctrl-C stops it\n\n  export E2B_API_URL=%s E2B_SANDBOX_URL=%s\n  export E2B_API_KEY=$(cat %s)\n  export TARTARUS_URL=%s TARTARUS_DATA=%s\n",
		url, url, filepath.Join(s.dir, "olympus", "admin.key"), url, filepath.Join(s.dir, "olympus"))
	<-ctx.Done()
	return nil
}

// start runs a process whose output goes to a file.
func (s *stack) start(ctx context.Context, name string, env []string, command string, args ...string) error {
	log, err := os.Create(filepath.Join(s.logs, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(command, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this program, which stops them in order
	if err := cmd.Start(); err != nil {
		return err
	}
	s.procs = append(s.procs, cmd)
	s.group.Go(func() error {
		err := cmd.Wait()
		if ctx.Err() == nil {
			return fmt.Errorf("%s ended: %v", name, err) // ends the others
		}
		return nil
	})
	return nil
}

// stop ends a process in order, and without order when that takes too long.
func stop(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	for range 300 {
		if cmd.ProcessState != nil || cmd.Process.Signal(syscall.Signal(0)) != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	_ = cmd.Process.Kill()
}

// until repeats check until it is content.
func until(ctx context.Context, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *stack) redis(ctx context.Context) error {
	args := append(s.Services["redis"].Command[1:], "--bind", "127.0.0.1", "--port", s.port("6379"), "--dir", filepath.Join(s.dir, "redis"))
	if err := s.start(ctx, "redis", nil, s.Services["redis"].Command[0], args...); err != nil {
		return err
	}
	return until(ctx, func() error {
		c, err := net.DialTimeout("tcp", "127.0.0.1:"+s.port("6379"), time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		var pong [5]byte
		if _, err := io.WriteString(c, "PING\r\n"); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, pong[:]); err != nil || string(pong[:]) != "+PONG" {
			return fmt.Errorf("it says %q: %w", pong, err)
		}
		return nil
	})
}

// objects runs the S3 server that this host has: versitygw over a folder, in which a folder is a bucket, or minio.
func (s *stack) objects(ctx context.Context) error {
	m, root := s.Services["minio"], filepath.Join(s.dir, "minio")
	bucket := s.Services["hecatoncheir"].Environment["TARTARUS_S3_BUCKET"]
	addr := "127.0.0.1:" + s.port("9000")
	if err := os.MkdirAll(filepath.Join(root, bucket), 0o700); err != nil {
		return err
	}
	var err error
	if gateway, lookErr := versitygw(ctx); lookErr == nil {
		env := []string{"ROOT_ACCESS_KEY=" + m.Environment["MINIO_ROOT_USER"], "ROOT_SECRET_KEY=" + m.Environment["MINIO_ROOT_PASSWORD"]}
		err = s.start(ctx, "s3", env, gateway, "--port", addr, "posix", root)
	} else if server, lookErr := exec.LookPath("minio"); lookErr == nil {
		err = s.start(ctx, "s3", s.environment(m), server, "server", root, "--address", addr)
	} else {
		err = errors.New("there is neither versitygw nor minio here: test/prerequisites.sh --install installs the first")
	}
	if err != nil {
		return err
	}
	return until(ctx, func() error {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

func versitygw(ctx context.Context) (string, error) {
	if p, err := exec.LookPath("versitygw"); err == nil {
		return p, nil
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOPATH").Output()
	if err != nil {
		return "", err
	}
	p := filepath.Join(strings.TrimSpace(string(out)), "bin", "versitygw")
	_, err = os.Stat(p)
	return p, err
}

// part runs one of the two daemons with the environment of its service.
func (s *stack) part(ctx context.Context, name string) error {
	svc := s.Services[name]
	env := append(s.environment(svc), "TARTARUS_DATA="+filepath.Join(s.dir, name))
	return s.start(ctx, name, env, s.bin, svc.Build.Target)
}

func (s *stack) olympus(ctx context.Context) error {
	if err := s.part(ctx, "olympus"); err != nil {
		return err
	}
	check := s.Services["olympus"].Healthcheck.Test
	return until(ctx, func() error {
		_, err := s.cli(ctx, check[2:]...)
		return err
	})
}

// join makes the token, as the service of this name does.
func (s *stack) join(ctx context.Context) error {
	node := s.Services["hecatoncheir"].Environment["TARTARUS_NODE_NAME"]
	token, err := s.cli(ctx, "node", "token", "--for", "1h", "--node", node)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, "join", "token"), []byte(token+"\n"), 0o600)
}

func (s *stack) hecatoncheir(ctx context.Context) error {
	if err := s.part(ctx, "hecatoncheir"); err != nil {
		return err
	}
	name := s.Services["hecatoncheir"].Environment["TARTARUS_NODE_NAME"]
	return until(ctx, func() error {
		out, err := s.cli(ctx, "node", "show", name)
		if err == nil && !strings.Contains(out, "ready") {
			err = fmt.Errorf("the node is not ready:\n%s", out)
		}
		return err
	})
}

// cli runs the command line against the stack.
func (s *stack) cli(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.bin, args...)
	cmd.Env = append(os.Environ(), "TARTARUS_URL=http://127.0.0.1:"+s.port("7300"), "TARTARUS_DATA="+filepath.Join(s.dir, "olympus"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("tartarus %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimRight(string(out), "\n"), err
}
