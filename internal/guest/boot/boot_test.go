package boot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/boot"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// asInit makes this test binary the first process of a machine of its own, see TestFirstProcess.
const asInit = "GUEST_TEST_AS_INIT"

// asAgent makes it an agent that serves on the given address.
const asAgent = "GUEST_TEST_AS_AGENT"

func TestMain(m *testing.M) {
	if root := os.Getenv(asInit); root != "" {
		if err := firstProcess(root); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if listen := os.Getenv(asAgent); listen != "" {
		if err := boot.Run(context.Background(), []string{"--listen", listen}, os.Stdout, os.Stderr); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The agent as process 1 of bare namespaces: it mounts what is missing, brings loopback up, and leaves no zombie.
func TestFirstProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces and mounts")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{asInit + "=" + t.TempDir(), "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skipf("needs namespaces: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func firstProcess(root string) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("pid %d", os.Getpid())
	}
	if err := bareMachine(root); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		served <- boot.Run(ctx, []string{"--mounts", "--listen", "127.0.0.1:49983"}, os.Stdout, os.Stderr)
	}()
	client := guestclient.New(guestclient.Config{Addr: netip.MustParseAddr("127.0.0.1")})
	for client.Health(ctx) != nil {
		select {
		case err := <-served:
			return fmt.Errorf("agent: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	err := errors.Join(checkMounts(), checkReaping(ctx, client))
	client.Close()
	cancel()
	return errors.Join(err, <-served)
}

// bareMachine changes into a root that has programs and empty folders, and nothing mounted.
func bareMachine(root string) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range []string{"usr", "bin", "sbin", "lib", "lib64", "etc"} {
		source := "/" + dir
		if target, err := os.Readlink(source); err == nil {
			if err := os.Symlink(target, filepath.Join(root, dir)); err != nil {
				return err
			}
			continue
		}
		if _, err := os.Stat(source); err != nil {
			continue
		}
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, filepath.Join(root, dir), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", source, err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "root"), 0o700); err != nil {
		return err
	}
	if err := unix.Chroot(root); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

func checkMounts() error {
	table, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return err
	}
	for _, want := range []string{" /proc proc ", " /sys sysfs ", " /dev devtmpfs ", " /dev/pts devpts ", " /dev/shm tmpfs ", " /run tmpfs ", " /tmp tmpfs "} {
		if strings.Count(string(table), want) != 1 {
			err = errors.Join(err, fmt.Errorf("not mounted once:%s", want))
		}
	}
	lo, ierr := net.InterfaceByName("lo")
	if ierr != nil || lo.Flags&net.FlagUp == 0 {
		err = errors.Join(err, fmt.Errorf("loopback is down: %v", ierr))
	}
	return err
}

// checkReaping starts processes that leave orphans behind, many at once, and looks for zombies.
func checkReaping(ctx context.Context, client *guestclient.Client) error {
	var wait sync.WaitGroup
	failed := make(chan error, 100)
	for i := range 50 {
		wait.Go(func() {
			var out bytes.Buffer
			exit, err := client.Run(ctx, guestclient.Command{
				Argv: []string{"/bin/sh", "-c", fmt.Sprintf("(sleep 0.0%d & sleep 0.05 &) ; echo %d; exit %d", i%10, i, i)}, User: "root",
			}, nil, &out, io.Discard)
			if err != nil || exit.Code != i || out.String() != fmt.Sprintln(i) {
				failed <- fmt.Errorf("%d: %q %+v %w", i, out.String(), exit, err)
			}
		})
	}
	wait.Wait()
	close(failed)
	var err error
	for f := range failed {
		err = errors.Join(err, f)
	}
	for {
		others, _ := filepath.Glob("/proc/[0-9]*")
		if len(others) == 1 {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, fmt.Errorf("processes or zombies are left: %v", others))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestCommandLine(t *testing.T) {
	var out bytes.Buffer
	if err := boot.Run(t.Context(), []string{"--version"}, &out, io.Discard); err != nil || out.String() != tartarus.AgentVersion+"\n" || tartarus.AgentVersion != "0.6.13" {
		t.Errorf("%q %v", out.String(), err)
	}
	for _, args := range [][]string{{"--nothing"}, {"argument"}} {
		if err := boot.Run(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
	if err := boot.Run(t.Context(), []string{"--help"}, io.Discard, io.Discard); err != nil {
		t.Errorf("help: %v", err)
	}
}
