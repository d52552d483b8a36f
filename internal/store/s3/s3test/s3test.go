// Package s3test starts a real S3 server for tests: versitygw over a folder, on loopback. It ends with the test.
package s3test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/tartarus-sandbox/tartarus/internal/store/s3"
)

// Server is one server with one bucket.
type Server struct {
	Dir string // where it keeps the bucket's objects, as plain files
	cfg s3.Config

	t    testing.TB
	addr string
	cmd  *exec.Cmd
}

// Start starts a server, or skips the test where none is installed.
func Start(t testing.TB) *Server {
	t.Helper()
	program := find()
	if program == "" {
		t.Skip("no S3 server: test/prerequisites.sh --install installs versitygw")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	root := t.TempDir()
	s := &Server{Dir: filepath.Join(root, "bucket"), t: t, addr: addr}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.cfg = s3.Config{Endpoint: "http://" + addr, Bucket: "bucket", AccessKey: "test-access", SecretKey: "test-secret-never-logged", PathStyle: true}
	s.cmd = exec.Command(program, "--port", addr, "--quiet", "posix", root)
	s.run()
	return s
}

// find looks where test/prerequisites.sh puts it.
func find() string {
	if p, err := exec.LookPath("versitygw"); err == nil {
		return p
	}
	out, err := exec.Command("go", "env", "GOPATH").Output()
	if err != nil {
		return ""
	}
	p := filepath.Join(string(bytes.TrimSpace(out)), "bin", "versitygw")
	if _, err := os.Stat(p); err != nil {
		return ""
	}
	return p
}

func (s *Server) run() {
	s.t.Helper()
	var said bytes.Buffer
	// Credentials go by the environment: argv is for everyone to read.
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.cfg.AccessKey, "ROOT_SECRET_KEY="+s.cfg.SecretKey)
	s.cmd.Stdout, s.cmd.Stderr = &said, &said
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // ended already when the test stopped it
		_ = s.cmd.Wait()
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
			s.t.Fatal("the S3 server does not listen: ", err, "\n", said.String())
		}
	}
}

// Kill ends the server as a crash would.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// Restart starts a killed server again, with what it had.
func (s *Server) Restart() {
	s.t.Helper()
	s.cmd = exec.Command(s.cmd.Path, s.cmd.Args[1:]...)
	s.run()
}

// client asks the server past the store, as an auditor would.
func (s *Server) client() *awss3.Client {
	return awss3.New(awss3.Options{
		Region: "us-east-1", UsePathStyle: true, BaseEndpoint: aws.String(s.cfg.Endpoint),
		Credentials: credentials.NewStaticCredentialsProvider(s.cfg.AccessKey, s.cfg.SecretKey, ""),
	})
}

// LockedBucket makes a bucket with object lock, or skips the test where the server has none.
func (s *Server) LockedBucket(name string) s3.Config {
	s.t.Helper()
	if _, err := s.client().CreateBucket(s.t.Context(), &awss3.CreateBucketInput{Bucket: aws.String(name), ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		s.t.Skip("this S3 server makes no buckets with object lock: ", err)
	}
	c := s.Config()
	c.Bucket = name
	return c
}

// Locked lists the objects of a bucket with the time until which nobody can remove them, zero for those that are not locked.
func (s *Server) Locked(bucket string) (map[string]time.Time, error) {
	found, err := s.client().ListObjectsV2(s.t.Context(), &awss3.ListObjectsV2Input{Bucket: aws.String(bucket)})
	if err != nil {
		return nil, err
	}
	out := map[string]time.Time{}
	for _, o := range found.Contents {
		r, err := s.client().GetObjectRetention(s.t.Context(), &awss3.GetObjectRetentionInput{Bucket: aws.String(bucket), Key: o.Key})
		out[*o.Key] = time.Time{}
		if err == nil && r.Retention != nil && r.Retention.Mode == types.ObjectLockRetentionModeCompliance && r.Retention.RetainUntilDate != nil {
			out[*o.Key] = *r.Retention.RetainUntilDate
		}
	}
	return out, nil
}

// Config is how to reach the bucket, each time under another prefix.
func (s *Server) Config() s3.Config {
	c := s.cfg
	c.Prefix = fmt.Sprintf("p%d/", time.Now().UnixNano())
	return c
}

// Open makes a client of the bucket.
func (s *Server) Open() *s3.Store {
	s.t.Helper()
	store, err := s3.New(s.Config())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = store.Close() })
	return store
}
