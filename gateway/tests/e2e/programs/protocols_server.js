// Servers of protocols that come as a Node package: node protocols_server.js graphql|sockjs
// Prints `listening PORT`.
'use strict';
const http = require('http');

const server = http.createServer();
const servers = {
  // GraphQL over WebSocket: a subscription that counts, one that goes on until it is completed.
  graphql() {
    const { buildSchema } = require('graphql');
    const { useServer } = require('graphql-ws/use/ws');
    const { WebSocketServer } = require('ws');
    const schema = buildSchema(`
      type Query { hello(name: String!): String! }
      type Subscription { count(to: Int!): Int!  forever: Int! }
    `);
    let open = 0;
    const roots = {
      query: { hello: ({ name }) => `hello ${name}` },
      subscription: {
        async *count({ to }) {
          for (let count = 1; count <= to; count++) yield { count };
        },
        async *forever() {
          open += 1;
          try {
            for (let forever = 1; ; forever++) {
              yield { forever };
              await new Promise((resolve) => setTimeout(resolve, 1));
            }
          } finally {
            open -= 1;
            console.log(`completed, ${open} open`);
          }
        },
      },
    };
    useServer({ schema, roots }, new WebSocketServer({ server, path: '/graphql' }));
  },

  sockjs() {
    const echo = require('sockjs').createServer({ log: () => {} });
    echo.on('connection', (client) => client.on('data', (text) => client.write(text)));
    echo.installHandlers(server, { prefix: '/echo' });
  },
};

servers[process.argv[2]]();
server.listen(0, '127.0.0.1', () => console.log(`listening ${server.address().port}`));
