// A SignalR hub on ASP.NET Core. Prints `listening PORT`.
using System;
using System.Linq;
using System.Threading.Channels;
using System.Threading.Tasks;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.SignalR;
using Microsoft.Extensions.DependencyInjection;

public class Chat : Hub
{
    public string Echo(string text) => text;

    public void Fail() => throw new HubException("no good");

    public Task Say(string text) => Clients.All.SendAsync("said", text);

    public ChannelReader<int> Count(int to)
    {
        var numbers = Channel.CreateUnbounded<int>();
        for (var number = 0; number < to; number++) numbers.Writer.TryWrite(number);
        numbers.Writer.Complete();
        return numbers.Reader;
    }
}

public static class Program
{
    public static void Main()
    {
        var host = new WebHostBuilder()
            .UseKestrel()
            .UseUrls("http://127.0.0.1:0")
            .ConfigureServices(services => services.AddSignalR())
            .Configure(app => app.UseSignalR(routes => routes.MapHub<Chat>("/chat")))
            .Build();
        host.Start();
        var address = host.ServerFeatures.Get<IServerAddressesFeature>().Addresses.First();
        Console.WriteLine("listening " + new Uri(address).Port);
        host.WaitForShutdown();
    }
}
