package s3

import (
	"context"
	"net"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
)

// MakeLocked makes the store's bucket, with object lock.
func MakeLocked(ctx context.Context, s *Store) error {
	_, err := s.client.CreateBucket(ctx, &awss3.CreateBucketInput{Bucket: aws.String(s.cfg.Bucket), ObjectLockEnabledForBucket: aws.Bool(true)})
	return err
}

// Via sends the connections of a store through another address.
func Via(s *Store, addr string) {
	s.http.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
}
