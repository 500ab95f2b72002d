module example.org/servers

go 1.19
